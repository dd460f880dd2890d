"""Finds the known edges that filtered ranks ignore, in the thread that builds batches."""

import logging
import time
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from common.errors import UserError
from common.reader.parquet import ParquetTable, RowGroup
from projects.twhin.data.edges import edge_table
from projects.twhin.data.relations import SIDES, Relations, Side

logger = logging.getLogger(__name__)

_LOG_INTERVAL_S = 10.0

Numbers = NDArray[np.int64]


def open_known_edges(inputs: Sequence[str], relations: Relations) -> list[ParquetTable]:
    """Open tables of known edges.

    Args:
      inputs: glob pattern, file or directory of each table.
      relations: relations of the model.

    Raises:
      DataError: no file matches, or a file is not a table of edges.
    """
    return [edge_table(each, relations) for each in inputs]


class KnownEdges:
    """Known edges that differ from an evaluated edge in one entity only.

    Each evaluated edge gives two queries, one per side: the relation and the entity on the other side. The known edges
    that match a query give its answers.

    Takes 8 bytes of memory per query and per answer, and about three times as much during construction.
    """

    def __init__(self, relations: Relations, evaluated: Sequence[ParquetTable], others: Sequence[ParquetTable]) -> None:
        """Read all tables one row group at a time. The evaluated tables are read twice.

        Args:
          relations: relations of the model.
          evaluated: tables of edges to evaluate. Their edges are also known edges.
          others: tables of other known edges.

        Raises:
          DataError: an edge's relation or entity does not exist.
        """
        self._answers = {side: KnownAnswers(relations, side) for side in SIDES}
        for edges in _row_groups(evaluated, "collecting queries"):
            for answers in self._answers.values():
                answers.add_queries(edges)
        collect_answers(list(self._answers.values()), [*evaluated, *others])

    def __call__(self, lhs: torch.Tensor, rel: torch.Tensor, rhs: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return EdgeBatch.known. It is complete only for edges of the evaluated tables.

        Args:
          lhs, rel, rhs: the edges, each [batch], int64.
        """
        edges: RowGroup = {"lhs": lhs.numpy(), "rel": rel.numpy(), "rhs": rhs.numpy()}
        return {side: torch.from_numpy(answers.pairs(edges)) for side, answers in self._answers.items()}


def collect_answers(queries: Sequence["KnownAnswers"], tables: Sequence[ParquetTable]) -> None:
    """Read known edges, and collect those that answer queries.

    Args:
      queries: has all queries of a side.
      tables: tables of known edges.

    Raises:
      DataError: an edge's relation or entity does not exist.
      UserError: there are too many pairs of a query and an entity to number them.
    """
    for answers in queries:
        answers.finish_queries()
    for edges in _row_groups(tables, "collecting known edges"):
        for answers in queries:
            answers.add_answers(edges)
    for answers in queries:
        answers.finish_answers()


def _row_groups(tables: Sequence[ParquetTable], activity: str) -> Iterator[RowGroup]:
    total, done = sum(table.num_rows for table in tables), 0
    last_logged = time.monotonic()
    for table in tables:
        for group in range(len(table.rows_per_group)):
            yield table.decode(group)
            done += int(table.rows_per_group[group])
            if time.monotonic() - last_logged > _LOG_INTERVAL_S:
                last_logged = time.monotonic()
                logger.info("%s: %s of %s edges read", activity, f"{done:,}", f"{total:,}")


class KnownAnswers:
    """The entities on one side that answer each query: a relation and the entity on the other side.

    First call add_queries() for all queries, then collect_answers() with the known edges, then pairs().
    """

    def __init__(self, relations: Relations, side: Side) -> None:
        """Start without queries.

        Args:
          relations: relations of the model.
          side: side of the answers.
        """
        self._side: Side = side
        self._other: Side = "rhs" if side == "lhs" else "lhs"
        rows = relations.num_entities[self._other]
        # The number of a query is the first number of its relation plus the row of its entity.
        self._first = np.cumsum(rows) - rows
        self._num_entities = int(relations.num_entities[side].max())
        self._query_parts: list[Numbers] = []
        self._answer_parts: list[Numbers] = []
        # Queries are distinct and ascending. The answers to query i are entities[starts[i]:starts[i + 1]], ascending.
        self._queries = np.empty(0, np.int64)
        self._starts = np.zeros(1, np.int64)
        self._entities = np.empty(0, np.int64)

    def add_queries(self, edges: RowGroup) -> None:
        """Add the queries of edges, whose entities on the side of the answers are ignored and may be missing."""
        self._query_parts.append(np.unique(self._query_numbers(edges)))

    def finish_queries(self) -> None:
        """Merge the queries.

        Raises:
          UserError: there are too many pairs of a query and an entity to number them.
        """
        self._queries = np.unique(np.concatenate([self._queries, *self._query_parts]))
        self._query_parts.clear()
        if len(self._queries) * self._num_entities >= 2**63:
            raise UserError(
                f"metrics.filtered: {len(self._queries):,} queries and a table of {self._num_entities:,} rows are too "
                "many for known edges to be ignored. Evaluate fewer edges, or set filtered to false"
            )

    def add_answers(self, edges: RowGroup) -> None:
        """Add the known edges that answer a query."""
        position, end = self._range(self._query_numbers(edges))
        is_answer = end > position
        # One number per pair sorts fast. It fits in 64 bits, as finish_queries() has checked.
        self._answer_parts.append(np.unique(position[is_answer] * self._num_entities + edges[self._side][is_answer]))

    def finish_answers(self) -> None:
        """Merge the answers."""
        answers = np.unique(np.concatenate([self._entities, *self._answer_parts]))
        self._answer_parts.clear()
        queries, self._entities = np.divmod(answers, self._num_entities)
        self._starts = np.searchsorted(queries, np.arange(len(self._queries) + 1))

    def pairs(self, edges: RowGroup) -> Numbers:
        """Return the answers to the queries of `edges`: positions of edges, ascending, and entities, [2, pairs]."""
        begin, end = self._range(self._query_numbers(edges))
        begins = self._starts[begin]
        counts = self._starts[end] - begins
        ends = np.cumsum(counts)
        within = np.arange(counts.sum()) - np.repeat(ends - counts, counts)
        entities = self._entities[np.repeat(begins, counts) + within]
        return np.stack([np.repeat(np.arange(len(counts)), counts), entities])

    def _query_numbers(self, edges: RowGroup) -> Numbers:
        return self._first[edges["rel"]] + edges[self._other]

    def _range(self, queries: Numbers) -> tuple[Numbers, Numbers]:
        """Return the range of each query's positions in the sorted queries, which has one position or none."""
        begin, end = (np.searchsorted(self._queries, queries, side) for side in ("left", "right"))
        return begin, end
