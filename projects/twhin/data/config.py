"""Configuration of TwHIN's data and of the relations in it."""

import math
from typing import Literal

import pydantic

from common.errors import ConfigError
from common.process.paths import user_path
from core.config.base_config import BaseConfig

_LANES = 24

Operator = Literal["identity", "translation", "diagonal", "linear", "complex_diagonal"]
"""The transformation that a relation applies to an embedding (docs/twhin.md has the formulas)."""

OperatorSides = Literal["both", "lhs", "rhs"]
"""The sides that have operators (docs/twhin.md explains each value)."""


class TwhinDataConfig(BaseConfig):
    """The files of edges and how edges are batched."""

    data_root: str = pydantic.Field(
        min_length=1, description="Glob pattern, file, or directory of Parquet files with the columns lhs, rel, rhs."
    )
    per_replica_batch_size: pydantic.PositiveInt | None = pydantic.Field(
        None,
        le=2**24,
        json_schema_extra={"one_of": "batch_size"},
        description="Edges per batch on each process. The run can then be resumed only on the same number of "
        "processes.",
    )
    global_batch_size: pydantic.PositiveInt | None = pydantic.Field(
        None,
        le=2**24,
        json_schema_extra={"one_of": "batch_size"},
        description="Edges per batch over all processes.",
    )
    global_negatives: pydantic.NonNegativeInt = pydantic.Field(
        0,
        le=2**24,
        description="Training: number of entities drawn uniformly from a side's table, which all edges of a process's "
        "batch share as their negatives on that side. Validation: number of negatives per edge and side, for AUC.",
    )
    in_batch_negatives: pydantic.NonNegativeInt = pydantic.Field(
        0,
        le=2**24,
        description="Training: number of entities drawn from the batch's own entities on that side, shared in the same "
        "way. Validation: added to global_negatives.",
    )
    limit: pydantic.PositiveInt | None = pydantic.Field(
        None, description="Number of edges to read, in the order of the files; null reads all."
    )
    offset: pydantic.NonNegativeInt | None = pydantic.Field(
        None, description="Number of edges to skip at the beginning; null skips none."
    )
    lanes: pydantic.PositiveInt | None = pydantic.Field(
        None,
        description="Number of parallel streams that the edges are dealt to: a multiple of the number of processes and "
        "a divisor of the global batch size. The order of edges depends on it. null means the greatest common divisor "
        "of 24 and the global batch size, or the number of processes if that divisor is not a multiple of it.",
    )
    prefetch_batches: pydantic.PositiveInt = pydantic.Field(
        8, description="Number of batches that each process prepares ahead of the step that uses them."
    )
    decode_threads: pydantic.PositiveInt = pydantic.Field(
        1, description="Number of threads per process that decode row groups ahead of use."
    )
    shuffle_window: pydantic.PositiveInt | None = pydantic.Field(
        None,
        le=2**40,
        description="Training only: minimum number of edges of a lane that are shuffled together, rounded up to whole "
        "row groups. null means one row group.",
    )

    def batch_size(self, world_size: int) -> int:
        """Return the number of edges per batch over all processes."""
        if self.global_batch_size is not None:
            return self.global_batch_size
        assert self.per_replica_batch_size is not None
        return self.per_replica_batch_size * world_size

    def num_lanes(self, world_size: int) -> int:
        """Return `lanes`, or a number of lanes that fits the batch and the processes if it is null."""
        if self.lanes is not None:
            return self.lanes
        lanes = math.gcd(self.batch_size(world_size), _LANES)
        return lanes if lanes % world_size == 0 else world_size


class Relation(BaseConfig):
    """A type of edges. Its id in the data is its position in the list of relations."""

    name: str = pydantic.Field(min_length=1, description="Name of the relation.")
    lhs: str = pydantic.Field(description="Table of the edges' left entities.")
    rhs: str = pydantic.Field(description="Table of the edges' right entities.")
    operator: Operator = pydantic.Field(
        "translation", description="Transformation that the relation applies to an embedding before the comparison."
    )


class NamedRelations(BaseConfig):
    """Relations that differ only in their names, which a file lists. projects.twhin.tools.prepare writes such files."""

    names_path: str = pydantic.Field(
        min_length=1, description="Text file with one name per line, in the order of the relations' ids."
    )
    lhs: str = pydantic.Field(description="Table of the edges' left entities.")
    rhs: str = pydantic.Field(description="Table of the edges' right entities.")
    operator: Operator = pydantic.Field(
        "translation",
        description="Transformation that every relation applies to an embedding, each with its own parameters.",
    )

    def read(self) -> list[Relation]:
        """Return the relations that the file names.

        Raises:
          ConfigError: the file cannot be read, contains an empty line, or contains a name twice.
        """
        where = f"model.relations.names_path: {self.names_path}"
        try:
            names = user_path(self.names_path).read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{where}: cannot read this file: {error}") from error
        first_lines: dict[str, int] = {}
        for line, name in enumerate(names, start=1):
            if not name:
                raise ConfigError(f"{where}: line {line} is empty. Every line must contain a name")
            if first_lines.setdefault(name, line) != line:
                raise ConfigError(
                    f"{where}: line {line}: {name} is already on line {first_lines[name]}. Names must differ"
                )
        return [Relation(name=name, lhs=self.lhs, rhs=self.rhs, operator=self.operator) for name in names]
