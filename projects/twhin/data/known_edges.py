"""The known edges that filtered ranks leave out: found for a batch in the thread that makes it."""

import logging
import time
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from common.errors import ConfigError
from common.reader.parquet import ParquetTable, RowGroup
from projects.twhin.config import RankingConfig
from projects.twhin.data.edges import edge_table
from projects.twhin.model.relations import SIDES, Relations, Side

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_LINES = 10.0

Numbers = NDArray[np.int64]


def open_known_edges(config: RankingConfig, relations: Relations) -> list[ParquetTable]:
    """The further tables of known edges.

    Raises:
      ConfigError: there are some, but ranks are not filtered.
      DataError: what is wrong with the files.
    """
    if config.known_edges and not config.filtered:
        raise ConfigError("metrics.known_edges: given, but metrics.filtered is false; remove one of them")
    return [edge_table(inputs, relations) for inputs in config.known_edges]


class KnownEdges:
    """Of the edges of some tables, those that answer a query of others: that share relation and one entity.

    Memory: 8 bytes per query, of which an edge has two, and 8 per answer; some three times that while it is built.
    """

    def __init__(
        self, relations: Relations, evaluated: Sequence[ParquetTable], further: Sequence[ParquetTable]
    ) -> None:
        """Reads all tables, the evaluated ones twice, a row group at a time.

        Args:
          relations: of the model.
          evaluated: what batches are made of; its edges are known ones, too.
          further: of known edges.

        Raises:
          DataError: an edge is none of the relations.
        """
        self._sides = {side: _Answers(relations, side) for side in SIDES}
        for edges in _row_groups(evaluated, "looking for queries"):
            for answers in self._sides.values():
                answers.ask(edges)
        for answers in self._sides.values():
            answers.all_asked()
        for edges in _row_groups([*evaluated, *further], "looking for known edges"):
            for answers in self._sides.values():
                answers.add(edges)
        for answers in self._sides.values():
            answers.finish()

    def __call__(self, lhs: torch.Tensor, rel: torch.Tensor, rhs: torch.Tensor) -> dict[str, torch.Tensor]:
        """EdgeBatch.known of edges lhs, rel and rhs: [batch], int64. An edge of no evaluated table may have none."""
        edges: RowGroup = {"lhs": lhs.numpy(), "rel": rel.numpy(), "rhs": rhs.numpy()}
        return {side: torch.from_numpy(answers.of(edges)) for side, answers in self._sides.items()}


def _row_groups(tables: Sequence[ParquetTable], doing: str) -> Iterator[RowGroup]:
    total, done = sum(table.num_rows for table in tables), 0
    told = time.monotonic()
    for table in tables:
        for group in range(len(table.rows_per_group)):
            yield table.decode(group)
            done += int(table.rows_per_group[group])
            if time.monotonic() - told > _SECONDS_BETWEEN_LINES:
                told = time.monotonic()
                logger.info("%s: %s of %s edges read", doing, f"{done:,}", f"{total:,}")


class _Answers:
    """The entities on one side, by query: a relation and an entity on the other side."""

    def __init__(self, relations: Relations, side: Side) -> None:
        self._side: Side = side
        self._other: Side = "rhs" if side == "lhs" else "lhs"
        rows = relations.num_entities[self._other]
        # Queries are numbered: relation by relation, by the rows of their tables.
        self._first = np.cumsum(rows) - rows
        self._num_entities = int(relations.num_entities[side].max())
        self._asked: list[Numbers] = []
        self._found: list[Numbers] = []
        # Distinct ones, ascending; those of query i are entities[starts[i]:starts[i + 1]], ascending.
        self._queries = np.empty(0, np.int64)
        self._starts = np.zeros(1, np.int64)
        self._entities = np.empty(0, np.int64)

    def ask(self, edges: RowGroup) -> None:
        """Adds the edges' queries."""
        self._asked.append(np.unique(self._numbers(edges)))

    def all_asked(self) -> None:
        """Ends the queries."""
        self._queries = np.unique(np.concatenate([self._queries, *self._asked]))
        self._asked.clear()

    def add(self, edges: RowGroup) -> None:
        """Adds what of the edges answers the queries."""
        position, end = self._range(self._numbers(edges))
        is_asked = end > position
        # One number of both: it sorts fast. 1e9 queries and as many entities are 1e18, within 64 bits.
        self._found.append(np.unique(position[is_asked] * self._num_entities + edges[self._side][is_asked]))

    def finish(self) -> None:
        """Ends the answers."""
        found = np.unique(np.concatenate([self._entities, *self._found]))
        self._found.clear()
        queries, self._entities = np.divmod(found, self._num_entities)
        self._starts = np.searchsorted(queries, np.arange(len(self._queries) + 1))

    def of(self, edges: RowGroup) -> Numbers:
        """[2, pairs]: positions among the edges, ascending, and entities."""
        begin, end = self._range(self._numbers(edges))
        begins = self._starts[begin]
        counts = self._starts[end] - begins
        ends = np.cumsum(counts)
        within = np.arange(counts.sum()) - np.repeat(ends - counts, counts)
        entities = self._entities[np.repeat(begins, counts) + within]
        return np.stack([np.repeat(np.arange(len(counts)), counts), entities])

    def _numbers(self, edges: RowGroup) -> Numbers:
        return self._first[edges["rel"]] + edges[self._other]

    def _range(self, queries: Numbers) -> tuple[Numbers, Numbers]:
        """Of the sorted ones those that equal each: one from begin to end, or none."""
        begin, end = (np.searchsorted(self._queries, queries, side) for side in ("left", "right"))
        return begin, end
