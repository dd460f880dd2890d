"""From the files of edges to batches, sorted into the model's segments."""

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
from projects.twhin.model.relations import SIDES, Relations, Side

COLUMNS: dict[Hashable, Column] = {name: Column(name, torch.int64, booleans=False) for name in ("lhs", "rel", "rhs")}
"""Of a table of edges: row of the left entity, id of the relation, row of the right entity."""

OfEdges = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], Mapping[str, torch.Tensor]]
"""Of lhs, rel and rhs [batch] int64 makes EdgeBatch.known or .negatives."""


def edge_table(inputs: str, relations: Relations, rows: Callable[[int], range] | None = None) -> ParquetTable:
    """Reads the footers of files of edges, which are checked against the relations when they are decoded.

    Args:
      inputs: glob pattern, file or directory.
      relations: those of the model.
      rows: as of ParquetTable.

    Raises:
      ConfigError, DataError: what is wrong with the files.
    """
    return ParquetTable(matching_files(inputs), COLUMNS, rows=rows, check=_Check(relations))


class EdgeDataset:
    """Edges whose metadata was checked: every mistake that shows without reading a row is raised here."""

    def __init__(self, table: ParquetTable, relations: Relations, config: TwhinDataConfig) -> None:
        self.table = table
        self._relations = relations
        self._config = config

    @classmethod
    def open(cls, config: TwhinDataConfig, relations: Relations, path: str) -> Self:
        """Reads footers.

        Args:
          config: the data set.
          relations: those of the model, which edges are checked against.
          path: of `config` within the whole configuration, for messages.

        Raises:
          ConfigError, DataError: what is wrong with files or offset.
        """

        def rows(num_edges: int) -> range:
            begin = config.offset or 0
            if begin >= num_edges:
                raise ConfigError(f"{path}.offset: {begin} given, but {config.data_root} has {num_edges} edges")
            return range(begin, num_edges if config.limit is None else min(begin + config.limit, num_edges))

        return cls(edge_table(config.data_root, relations, rows), relations, config)

    def reader(
        self, rank: int, world_size: int, *, known: OfEdges | None = None, negatives: OfEdges | None = None
    ) -> BatchReader[EdgeBatch]:
        """This rank's share of the batches.

        Args:
          rank: of this process.
          world_size: number of processes.
          known: of evaluation with filtered ranks: makes EdgeBatch.known, in the thread that makes batches.
          negatives: of evaluation: makes EdgeBatch.negatives, there too.
        """
        return BatchReader(
            self.table,
            _MakeBatch(self._relations, known, negatives),
            global_batch_size=self._config.batch_size(world_size),
            lanes=self._config.num_lanes(world_size),
            rank=rank,
            world_size=world_size,
            reading=PrefetchOptions(
                self._config.prefetch_batches, self._config.decode_threads, self._config.shuffle_window or 1
            ),
        )


def check_batching(config: TwhinDataConfig, path: str, world_size: int) -> None:
    """Raises ConfigError where batch, lanes and number of processes don't fit each other."""
    if config.lanes is None and config.batch_size(world_size) % world_size:
        raise ConfigError(
            f"{path}.global_batch_size: {config.global_batch_size} is not a multiple of the {world_size} processes; "
            "every process takes equally many edges of a batch"
        )
    try:
        check_lanes(config.num_lanes(world_size), config.batch_size(world_size), world_size)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


class _Check:
    """Looks for relations that have no name, and entities that are beyond their table."""

    def __init__(self, relations: Relations) -> None:
        self._relations = relations

    def __call__(self, edges: RowGroup) -> BadValue | None:
        names, rel = self._relations.names, edges["rel"]
        # Also true of negative numbers.
        if (unknown := rel.astype(np.uint64) >= len(names)).any():
            row = int(np.argmax(unknown))
            problem = f"{rel[row]} found, but model.relations are {len(names)} (ids from 0 to {len(names) - 1})"
            return BadValue("rel", row, problem)
        for side in SIDES:
            entities, limits = edges[side], self._relations.num_entities[side][rel]
            if (beyond := entities.astype(np.uint64) >= limits.astype(np.uint64)).any():
                row = int(np.argmax(beyond))
                return BadValue(side, row, self._problem(side, int(entities[row]), int(rel[row])))
        return None

    def _problem(self, side: Side, entity: int, rel: int) -> str:
        if entity < 0:
            return f"{entity} found, rows are counted from 0"
        relations = self._relations
        table = relations.segments[relations.segment_of[rel]].table(side)
        return (
            f"{entity} found, but the table {table} has {relations.num_entities[side][rel]} rows "
            f"(relation {relations.names[rel]}); raise num_embeddings, or correct the data"
        )


class _MakeBatch:
    """Sorts edges by their segment. Edges that only fill up are those of relation 0 between entities 0."""

    def __init__(self, relations: Relations, known: OfEdges | None, negatives: OfEdges | None) -> None:
        self._num_segments = len(relations.segments)
        # numpy sorts 16 bits in linear time.
        self._segment_of = relations.segment_of.astype(np.min_scalar_type(self._num_segments))
        self._known = known
        self._negatives = negatives

    def __call__(self, columns: Columns, weights: torch.Tensor) -> EdgeBatch:
        segments = self._segment_of[columns["rel"].numpy()]
        order = torch.from_numpy(np.argsort(segments, kind="stable"))
        lhs, rel, rhs = (columns[name][order] for name in COLUMNS)
        sizes = np.bincount(segments, minlength=self._num_segments).tolist()
        weights = weights[order]
        known: Mapping[str, torch.Tensor] = {}
        if self._known is not None:
            # Not those of filling: the entities 0 may have many.
            real = weights.nonzero().flatten()
            found = self._known(lhs[real], rel[real], rhs[real])
            known = {side: torch.stack([real[position], entity]) for side, (position, entity) in found.items()}
        negatives = self._negatives(lhs, rel, rhs) if self._negatives is not None else {}
        return EdgeBatch(lhs, rel, rhs, weights, tuple(sizes), known, negatives)
