"""Reads files of edges and batches them, sorted into the model's segments."""

from collections.abc import Callable, Hashable, Mapping
from typing import Self

import numpy as np
import torch

from common.errors import ConfigError
from common.reader.column import Column
from common.reader.files import matching_files
from common.reader.order import check_lanes
from common.reader.parquet import BadValue, ParquetTable, RowGroup
from common.reader.reader import BatchReader, Columns, PrefetchOptions
from projects.twhin.data.batch import EdgeBatch
from projects.twhin.data.config import TwhinDataConfig
from projects.twhin.data.relations import SIDES, Relations, Side

COLUMNS: dict[Hashable, Column] = {name: Column(name, torch.int64, booleans=False) for name in ("lhs", "rel", "rhs")}
"""Columns of a table of edges: row of the left entity, id of the relation, row of the right entity."""

EdgeFunction = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], Mapping[str, torch.Tensor]]
"""Computes EdgeBatch.known or EdgeBatch.negatives from lhs, rel and rhs, each [batch], int64."""


def edge_table(inputs: str, relations: Relations, rows: Callable[[int], range] | None = None) -> ParquetTable:
    """Open files of edges. Only their footers are read; edges are checked against the relations when decoded.

    Args:
      inputs: glob pattern, file or directory.
      relations: relations of the model.
      rows: selects rows; see ParquetTable.

    Raises:
      ConfigError, DataError: no file matches, or a file is not a table of edges.
    """
    return ParquetTable(matching_files(inputs), COLUMNS, rows=rows, check=_EdgeCheck(relations))


class EdgeDataset:
    """A data set of edges. Opening it raises every error that can be detected without reading rows."""

    def __init__(self, table: ParquetTable, relations: Relations, config: TwhinDataConfig) -> None:
        self.table = table
        self._relations = relations
        self._config = config

    @classmethod
    def open(cls, config: TwhinDataConfig, relations: Relations, key_path: str) -> Self:
        """Open the data set. Only footers are read.

        Args:
          config: configuration of the data set.
          relations: relations of the model, which edges are checked against.
          key_path: key path of `config`, for messages.

        Raises:
          ConfigError, DataError: no file matches, a file is not a table of edges, or the offset skips all edges.
        """

        def rows(num_edges: int) -> range:
            begin = config.offset or 0
            if begin >= num_edges:
                raise ConfigError(f"{key_path}.offset is {begin}, but {config.data_root} has only {num_edges} edges")
            return range(begin, num_edges if config.limit is None else min(begin + config.limit, num_edges))

        return cls(edge_table(config.data_root, relations, rows), relations, config)

    def reader(
        self, rank: int, world_size: int, *, known: EdgeFunction | None = None, negatives: EdgeFunction | None = None
    ) -> BatchReader[EdgeBatch]:
        """Return a reader of this rank's share of the batches.

        Args:
          rank: rank of this process.
          world_size: number of processes.
          known: computes EdgeBatch.known for evaluation with filtered ranks. Runs in the thread that builds batches.
          negatives: computes EdgeBatch.negatives for evaluation. Runs in the same thread.
        """
        return BatchReader(
            self.table,
            BatchBuilder(self._relations, known, negatives),
            global_batch_size=self._config.batch_size(world_size),
            lanes=self._config.num_lanes(world_size),
            rank=rank,
            world_size=world_size,
            prefetch=PrefetchOptions.from_config(self._config),
        )


def check_batching(config: TwhinDataConfig, key_path: str, world_size: int) -> None:
    """Raise ConfigError if the lanes do not divide the global batch or are not a multiple of the world size.

    Args:
      config: configuration of the data set.
      key_path: key path of `config`, for messages.
      world_size: number of processes.
    """
    if config.lanes is None and config.batch_size(world_size) % world_size:
        raise ConfigError(
            f"{key_path}.global_batch_size is {config.global_batch_size}, which is not a multiple of the {world_size} "
            "processes. Every process takes the same number of edges of a batch"
        )
    try:
        check_lanes(config.num_lanes(world_size), config.batch_size(world_size), world_size)
    except ConfigError as error:
        raise ConfigError(f"{key_path}: {error}") from None


class _EdgeCheck:
    """Finds edges whose relation or entity does not exist."""

    def __init__(self, relations: Relations) -> None:
        self._relations = relations

    def __call__(self, edges: RowGroup) -> BadValue | None:
        names, rel = self._relations.names, edges["rel"]
        # As unsigned numbers, negative ids also exceed the limit.
        if (unknown := rel.astype(np.uint64) >= len(names)).any():
            row = int(np.argmax(unknown))
            problem = f"found {rel[row]}, but model.relations has {len(names)} (ids from 0 to {len(names) - 1})"
            return BadValue("rel", row, problem)
        for side in SIDES:
            entities, limits = edges[side], self._relations.num_entities[side][rel]
            if (beyond := entities.astype(np.uint64) >= limits.astype(np.uint64)).any():
                row = int(np.argmax(beyond))
                return BadValue(side, row, self._problem(side, int(entities[row]), int(rel[row])))
        return None

    def _problem(self, side: Side, entity: int, rel: int) -> str:
        if entity < 0:
            return f"found {entity}, but rows are counted from 0"
        relations = self._relations
        table = relations.segments[relations.segment_of[rel]].table(side)
        return (
            f"found {entity}, but the table {table} has {relations.num_entities[side][rel]} rows "
            f"(relation {relations.names[rel]}); raise num_embeddings or correct the data"
        )


class BatchBuilder:
    """Builds batches of edges sorted by segment. Padding is an edge of relation 0 between the entities 0."""

    def __init__(
        self, relations: Relations, known: EdgeFunction | None = None, negatives: EdgeFunction | None = None
    ) -> None:
        self._num_segments = len(relations.segments)
        # numpy sorts 16-bit integers in linear time.
        self._segment_of = relations.segment_of.astype(np.min_scalar_type(self._num_segments))
        self._known = known
        self._negatives = negatives

    def order(self, rel: torch.Tensor) -> torch.Tensor:
        """Return the position in the reader's order of each edge of the batch, [batch], int64.

        Args:
          rel: ids of the edges' relations in the reader's order, [batch], int64.
        """
        return torch.from_numpy(np.argsort(self._segment_of[rel.numpy()], kind="stable"))

    def __call__(self, columns: Columns, weights: torch.Tensor) -> EdgeBatch:
        order = self.order(columns["rel"])
        lhs, rel, rhs = (columns[name][order] for name in COLUMNS)
        sizes = np.bincount(self._segment_of[rel.numpy()], minlength=self._num_segments).tolist()
        weights = weights[order]
        known: Mapping[str, torch.Tensor] = {}
        if self._known is not None:
            # Skip padding: the entities 0 may have many known edges.
            real = weights.nonzero().flatten()
            pairs = self._known(lhs[real], rel[real], rhs[real])
            known = {side: torch.stack([real[position], entity]) for side, (position, entity) in pairs.items()}
        negatives = self._negatives(lhs, rel, rhs) if self._negatives is not None else {}
        return EdgeBatch(lhs, rel, rhs, weights, tuple(sizes), known, negatives)
