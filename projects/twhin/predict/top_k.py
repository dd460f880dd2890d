"""Finds the entities that answer queries best.

Scores are those that the model trains with, computed in float64 in blocks of queries and candidates, as in ranking.py.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from projects.twhin.data.known_edges import KnownAnswers
from projects.twhin.data.relations import SIDES, Segment, Side
from projects.twhin.model.operators import concat
from projects.twhin.predict.names import EntityNames
from projects.twhin.predict.queries import Queries
from projects.twhin.predict.saved_model import SavedModel

# Number of scores computed at once: 8 MB of float64, which fits into a cache.
_TILE_QUERIES, _TILE_CANDIDATES = 512, 2048

# Number of queries and of their answers that are held at once.
_BLOCK_QUERIES, _BLOCK_ANSWERS = 2048, 2**21

# Number of embedding values of answers that are held at once: 32 MB of float64.
_ANSWER_EMBEDDINGS = 2**22

_LOWEST = torch.finfo(torch.float64).min


class Answers(NamedTuple):
    """The best answers to queries, best first.

    Attributes:
      queries: the queries.
      entities: rows of the answers in their tables, [queries, k], int64; -1 if there are fewer candidates.
      scores: scores of the answers, [queries, k], float64; -inf if there are fewer candidates.
    """

    queries: Queries
    entities: NDArray[np.int64]
    scores: NDArray[np.float64]


def best_answers(
    model: SavedModel, names: EntityNames, queries: Queries, known: Mapping[Side, KnownAnswers], k: int
) -> Iterator[Answers]:
    """Yield the best answers to queries, in blocks, in the order of the queries.

    The candidates are all entities of the table, except the known answers and the query's own entity. Equal scores are
    ordered by row. Two scores count as equal if they may differ by rounding only (Comparator.tie_bounds). Candidates
    with a non-finite score are skipped.

    Args:
      model: the model.
      names: names of the entities. Rows that have none are not candidates.
      queries: the queries.
      known: answers to skip, by the side that they are on. Empty for none.
      k: number of answers per query.
    """
    k = min(k, max(map(names.count, model.tables)))
    size = min(_BLOCK_QUERIES, max(1, _BLOCK_ANSWERS // k))
    for begin in range(0, len(queries), size):
        block = queries[slice(begin, begin + size)]
        entities = np.empty((len(block), k), np.int64)
        scores = np.empty((len(block), k), np.float64)
        for table in model.tables:
            chunks = [chunk for side in SIDES for chunk in _chunks(model, names, block, known, side, table, k)]
            _compare(model, table, names.count(table), chunks)
            for chunk in chunks:
                entities[chunk.positions], scores[chunk.positions] = chunk.sorted_answers(model)
        yield Answers(block, entities, scores)


@dataclass
class _Chunk:
    """Queries that are compared with the same candidate vectors, and their best answers so far.

    Attributes:
      side: side of the answers.
      segment: segment whose operator transforms the candidates, if any operator does.
      table: table of the candidates.
      positions: positions of the queries in their block, [n].
      vectors: vectors to compare candidates with, [n, dim], float64.
      excluded: rows of the chunk and the entities that they skip, [2, pairs], int64, ascending by entity.
      k: number of answers per query.
      entities: answers, [n, k], int64; -1 if there are fewer.
      scores: scores of the answers, [n, k], float64; -inf if there are fewer.
      low: scores below it are lower than that of the last answer, [n], float64.
    """

    side: Side
    segment: Segment
    table: str
    positions: NDArray[np.int64]
    vectors: torch.Tensor
    excluded: NDArray[np.int64]
    k: int
    entities: torch.Tensor = field(init=False)
    scores: torch.Tensor = field(init=False)
    low: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        shape = len(self.positions), self.k
        self.entities = torch.full(shape, -1)
        self.scores = torch.full(shape, -torch.inf, dtype=torch.float64)
        self.low = torch.full(shape[:1], _LOWEST, dtype=torch.float64)

    def add(self, model: SavedModel, first: int, compared: torch.Tensor) -> None:
        """Compare the queries with candidates.

        Args:
          model: the model.
          first: row of the first candidate.
          compared: vectors of consecutive candidates, [m, dim], float64.
        """
        scores = model.scorer.comparator.all_pairs(self.vectors, compared)
        begin, end = np.searchsorted(self.excluded[1], [first, first + len(compared)])
        excluded = torch.from_numpy(self.excluded[:, begin:end])
        scores[excluded[0], excluded[1] - first] = -torch.inf
        rows, columns = (scores >= self.low[:, None]).nonzero(as_tuple=True)
        hits = scores[rows, columns]
        is_finite = hits.isfinite()
        rows, columns, hits = rows[is_finite], columns[is_finite], hits[is_finite]
        if len(rows):
            self._merge(model, rows, first + columns, hits)

    def _merge(self, model: SavedModel, rows: torch.Tensor, candidates: torch.Tensor, hits: torch.Tensor) -> None:
        """Keep the k best of the answers so far and of candidates that may be among them.

        Args:
          model: the model.
          rows: rows of the chunk, [hits], ascending.
          candidates: candidates, [hits].
          hits: their scores, [hits], float64.
        """
        rows, index, counts = torch.unique_consecutive(rows, return_inverse=True, return_counts=True)
        width = self.k + int(counts.max())
        scores = torch.full((len(rows), width), -torch.inf, dtype=torch.float64)
        entities = torch.full((len(rows), width), -1)
        scores[:, : self.k], entities[:, : self.k] = self.scores[rows], self.entities[rows]
        column = self.k + torch.arange(len(index)) - (counts.cumsum(0) - counts)[index]
        scores[index, column], entities[index, column] = hits, candidates
        last = scores.topk(self.k, dim=1).indices[:, -1:]
        compared = self._compared(model, entities.gather(1, last)[:, 0])
        low, high = model.scorer.comparator.tie_bounds(self.vectors[rows], compared)
        # If there are fewer than k candidates so far, all of them are among the best.
        is_full = scores.gather(1, last)[:, 0] > -torch.inf
        low, high = torch.where(is_full, low, _LOWEST)[:, None], torch.where(is_full, high, _LOWEST)[:, None]
        # Fewer than k scores are above the last one. The rest are those of the same score with the lowest rows.
        order = torch.where(scores >= low, -entities.double(), -torch.inf).masked_fill(scores > high, torch.inf)
        chosen = order.topk(self.k, dim=1).indices
        self.scores[rows], self.entities[rows] = scores.gather(1, chosen), entities.gather(1, chosen)
        self.low[rows] = low[:, 0]

    def sorted_answers(self, model: SavedModel) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return entities and scores, [n, k] each, best first. Equal rows have equal scores, wherever they are."""
        entities, by_row = self.entities.sort(dim=1)
        query = torch.arange(len(entities)).repeat_interleave(self.k)
        size = max(1, _ANSWER_EMBEDDINGS // self.vectors.shape[1])
        parts = [
            model.scorer.comparator.pairs(self.vectors[rows], self._compared(model, part))
            for rows, part in zip(torch.split(query, size), torch.split(entities.flatten(), size), strict=True)
        ]
        is_answer = self.scores.gather(1, by_row) > -torch.inf
        scores = torch.where(is_answer, concat(parts).view(-1, self.k), -torch.inf)
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        entities = torch.where(scores > -torch.inf, entities.gather(1, order), -1)
        return entities.numpy(), scores.numpy()

    def _compared(self, model: SavedModel, entities: torch.Tensor) -> torch.Tensor:
        """Return the vectors of candidates, [n, dim], float64. Any vector stands for the entity -1."""
        rows = model.tables[self.table][entities.clamp_min(0)].double()
        return model.scorer.candidates(self.side, self.segment, rows)


def _compare(model: SavedModel, table: str, count: int, chunks: list[_Chunk]) -> None:
    """Compare chunks of queries with the first `count` rows of their table."""
    for begin in range(0, count if chunks else 0, _TILE_CANDIDATES):
        rows = model.tables[table][begin : min(begin + _TILE_CANDIDATES, count)].double()
        compared: dict[tuple[Side, Segment], torch.Tensor] = {}
        for chunk in chunks:
            key = chunk.side, chunk.segment
            if key not in compared:
                compared = {key: model.scorer.candidates(chunk.side, chunk.segment, rows)}
            chunk.add(model, begin, compared[key])


def _chunks(
    model: SavedModel,
    names: EntityNames,
    block: Queries,
    known: Mapping[Side, KnownAnswers],
    side: Side,
    table: str,
    k: int,
) -> Iterator[_Chunk]:
    """Yield the queries of a block that find entities of a table on a side, in chunks."""
    relations, scorer = model.scorer.relations, model.scorer
    other: Side = "rhs" if side == "lhs" else "lhs"
    positions = block.positions(side)
    segment_of = relations.segment_of[block.relations[positions]]
    segments = relations.segments_of(side).get(table, [])
    for part in [[segment] for segment in segments] if scorer.transforms_candidates(side) else [segments]:
        vectors, part_positions = [], []
        for index in part:
            segment = relations.segments[index]
            chosen = positions[segment_of == index]
            rows = model.tables[segment.table(other)][torch.from_numpy(block.entities[chosen])].double()
            vectors.append(scorer.query(side, segment, rows, torch.from_numpy(block.relations[chosen])))
            part_positions.append(chosen)
        if not part:
            continue
        all_positions, all_vectors = np.concatenate(part_positions), concat(vectors)
        for begin in range(0, len(all_positions), _TILE_QUERIES):
            chunk = all_positions[begin : begin + _TILE_QUERIES]
            excluded = _excluded(names, block, known, side, chunk)
            yield _Chunk(
                side, relations.segments[part[0]], table, chunk, all_vectors[begin : begin + _TILE_QUERIES], excluded, k
            )


def _excluded(
    names: EntityNames, block: Queries, known: Mapping[Side, KnownAnswers], side: Side, chunk: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return pairs of a query of the chunk and an entity that it skips, [2, pairs], ascending by entity."""
    other: Side = "rhs" if side == "lhs" else "lhs"
    relations, entities = block.relations[chunk], block.entities[chunk]
    is_own = names.share_a_table(relations)
    pairs = [np.stack([np.flatnonzero(is_own), entities[is_own]])]
    if side in known:
        pairs.append(known[side].pairs({"rel": relations, other: entities}))
    merged = np.concatenate(pairs, axis=1)
    return merged[:, np.argsort(merged[1], kind="stable")]
