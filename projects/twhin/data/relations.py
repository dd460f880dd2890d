"""The relations of a graph: their configuration, their tables, and the segments that a batch is sorted into."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pydantic
from numpy.typing import NDArray

from common.errors import ConfigError
from common.process.paths import user_path
from core.config.base_config import BaseConfig

Operator = Literal["identity", "translation", "diagonal", "linear", "complex_diagonal"]
"""The transformation that a relation applies to an embedding (docs/twhin.md has the formulas)."""

OperatorSides = Literal["both", "lhs", "rhs"]
"""The sides that have operators (docs/twhin.md explains each value)."""

Side = Literal["lhs", "rhs"]
SIDES: tuple[Side, Side] = ("lhs", "rhs")


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
            names = user_path(self.names_path).read_text(encoding="utf-8").removesuffix("\n").split("\n")
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


@dataclass(frozen=True)
class Segment:
    """A group of relations whose edges are computed together: they share both tables and the operator.

    If operators apply to one side only (operator_sides: lhs or rhs), candidates are transformed by each relation's own
    operator, so every relation has its own segment. A relation with a linear operator also has its own segment, because
    it needs its own matrix product.
    """

    lhs: str
    rhs: str
    operator: Operator
    relations: tuple[int, ...]

    def table(self, side: Side) -> str:
        """Return the name of the table that holds the entities on `side`."""
        return self.lhs if side == "lhs" else self.rhs


class Relations:
    """The relations of a model, indexed by their ids.

    Attributes:
      names: name of each relation.
      operators: operator of each relation.
      num_entities: number of rows of each relation's table, by side: [relations], int64.
      segments: segments, in the order of a batch.
      segment_of: position of each relation's segment: [relations], int64.
    """

    def __init__(
        self, relations: Sequence[Relation], num_embeddings: Mapping[str, int], operator_sides: OperatorSides
    ) -> None:
        """Index the relations and group them into segments.

        Args:
          relations: all relations, in the order of their ids.
          num_embeddings: number of rows of each table, by name.
          operator_sides: sides that have operators.
        """
        self.names = tuple(relation.name for relation in relations)
        self.operators: tuple[Operator, ...] = tuple(relation.operator for relation in relations)
        self.num_entities: dict[Side, NDArray[np.int64]] = {
            "lhs": np.array([num_embeddings[relation.lhs] for relation in relations]),
            "rhs": np.array([num_embeddings[relation.rhs] for relation in relations]),
        }
        groups: dict[tuple[object, ...], list[int]] = {}
        for index, relation in enumerate(relations):
            own = (index,) if operator_sides != "both" or relation.operator == "linear" else ()
            groups.setdefault((relation.lhs, relation.rhs, relation.operator, *own), []).append(index)
        self.segments = tuple(
            Segment(first.lhs, first.rhs, first.operator, tuple(group))
            for group in groups.values()
            for first in [relations[group[0]]]
        )
        self.segment_of = np.empty(len(self.names), np.int64)
        for position, segment in enumerate(self.segments):
            self.segment_of[list(segment.relations)] = position

    def segments_of(self, side: Side) -> dict[str, list[int]]:
        """Return the positions of the segments that use each table on `side`, by table, in a fixed order."""
        positions: dict[str, list[int]] = {}
        for position, segment in enumerate(self.segments):
            positions.setdefault(segment.table(side), []).append(position)
        return positions
