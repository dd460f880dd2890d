"""Configuration of TwHIN's data."""

import math

import pydantic

from core.config.base_config import BaseConfig

_LANES = 24


class TwhinDataConfig(BaseConfig):
    """Edges in Parquet files, and how batches are made of them."""

    data_root: str = pydantic.Field(
        min_length=1, description="Glob pattern, file, or directory of Parquet files with the columns lhs, rel, rhs."
    )
    per_replica_batch_size: pydantic.PositiveInt | None = pydantic.Field(
        None,
        le=2**24,
        json_schema_extra={"one_of": "batch_size"},
        description="Edges per batch and process. The run can then be resumed on as many processes only.",
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
        description="Entities drawn uniformly from a side's table, which all edges of a process's batch share as their "
        "negatives on that side. Of validation data: negatives of each edge and side, for AUC.",
    )
    in_batch_negatives: pydantic.NonNegativeInt = pydantic.Field(
        0,
        le=2**24,
        description="Entities drawn from those of the batch on that side, shared likewise. Of validation data: so many "
        "more, drawn uniformly.",
    )
    limit: pydantic.PositiveInt | None = pydantic.Field(
        None, description="Read so many edges, in the order of the files; null: all."
    )
    offset: pydantic.NonNegativeInt | None = pydantic.Field(
        None, description="Leave out so many edges at the beginning; null: none."
    )
    lanes: pydantic.PositiveInt | None = pydantic.Field(
        None,
        description="Parallel streams that the edges are dealt over; a multiple of the number of processes, a divisor "
        "of the global batch. The order of edges depends on it. null: as many of 24 as divide the batch.",
    )
    prefetch_batches: pydantic.PositiveInt = pydantic.Field(
        8, description="Batches that a process makes ahead of the step that takes them."
    )
    decode_threads: pydantic.PositiveInt = pydantic.Field(
        1, description="Threads of a process that decode row groups before they are needed."
    )
    shuffle_window: pydantic.PositiveInt | None = pydantic.Field(
        None,
        le=2**40,
        description="Of training: edges of a lane that are shuffled together, at least; whole row groups. null: a row "
        "group.",
    )

    def batch_size(self, world_size: int) -> int:
        """Edges per batch over all processes."""
        if self.global_batch_size is not None:
            return self.global_batch_size
        assert self.per_replica_batch_size is not None
        return self.per_replica_batch_size * world_size

    def num_lanes(self, world_size: int) -> int:
        """As given, or as fits."""
        if self.lanes is not None:
            return self.lanes
        lanes = math.gcd(self.batch_size(world_size), _LANES)
        return lanes if lanes % world_size == 0 else world_size
