"""Ranks of edges' entities among all of a table, or a sample of it.

Candidates are looked up block by block, in collectives that all ranks make alike, whatever edges they have. Ranks are
those of scores in float64, whatever autocast says.
"""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from common.modules.embedding.tables import Lookup
from projects.twhin.data.batch import EdgeBatch
from projects.twhin.data.relations import SIDES, Segment, Side
from projects.twhin.model.config import RankingConfig, TwhinModelConfig
from projects.twhin.model.operators import concat
from projects.twhin.model.scorer import EdgeScorer

# Scores computed at once: 8 MB of float64, that a cache holds.
_TILE_QUERIES, _TILE_CANDIDATES = 512, 2048
_TILE_EMBEDDINGS = 2**18

# Numbers of embeddings looked up at once: 16 MB of float32.
_LOOKED_UP = 2**22


class Candidates:
    """What entities of each table an edge's own are ranked among: the same on all ranks, for all edges."""

    def __init__(self, config: RankingConfig, model: TwhinModelConfig, seed: int) -> None:
        """seed: of the sample, if there is one."""
        self.embedding_dim = {name: table.embedding_dim for name, table in model.tables.items()}
        self._num_embeddings = {name: table.num_embeddings for name, table in model.tables.items()}
        self._samples: dict[str, torch.Tensor] = {}
        for table, rows in self._num_embeddings.items():
            if config.candidates is not None and config.candidates < rows:
                generator = np.random.default_rng([seed, zlib.crc32(table.encode())])
                drawn = generator.choice(rows, config.candidates, replace=False, shuffle=False)
                self._samples[table] = torch.from_numpy(np.sort(drawn))

    def count(self, table: str) -> int:
        """Of the table's candidates."""
        return len(self._samples[table]) if table in self._samples else self._num_embeddings[table]

    def blocks(self, table: str) -> Iterator[torch.Tensor]:
        """All candidates, ascending, int64, in blocks of equal size but the last."""
        size = max(1, _LOOKED_UP // self.embedding_dim[table] // _TILE_CANDIDATES) * _TILE_CANDIDATES
        for begin in range(0, count := self.count(table), size):
            end = min(begin + size, count)
            yield self._samples[table][begin:end] if table in self._samples else torch.arange(begin, end)

    def positions(self, table: str, entities: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of entities [n], int64, their positions among the candidates [n], and which are among them, bool [n]."""
        if table not in self._samples:
            return entities, torch.ones_like(entities, dtype=torch.bool)
        sample = self._samples[table].to(entities.device)
        positions = torch.searchsorted(sample, entities).clamp_max(len(sample) - 1)
        return positions, sample[positions] == entities


def rank_edges(scorer: EdgeScorer, batch: EdgeBatch, lookup: Lookup, candidates: Candidates) -> dict[str, torch.Tensor]:
    """Ranks each edge's entities, on either side, among the candidates of their tables.

    A rank is 1 + the number of other candidates that score higher + half the number of those that score the same: the
    mean rank of the ties. The edge's own entity is left out of the others by its id, be it a candidate or not; out of
    filtered ranks' others, batch.known is left, too. A score that is NaN, or is compared with one, counts as the same.
    Edges of weight 0, which fill a batch, are not ranked: theirs are 1.

    Collective where lookup is: all ranks call it with as many edges and negatives.

    Args:
      scorer: of the scores; its parameters are float32.
      batch: with negatives; with known, filtered ranks are computed, too.
      lookup: rows of the tables.
      candidates: to rank among.

    Returns:
      float64 [batch, 2], left entities and right ones: "raw_ranks", "filtered_ranks", and "negatives_beaten", the share
      of the edge's negatives that score lower, ties half. "relations" [batch], int64, and "weights" [batch], float32.
    """
    with torch.autocast(batch.lhs.device.type, enabled=False):
        queries = _queries(scorer, batch, lookup)
        outputs = {"negatives_beaten": _negatives_beaten(scorer, batch, queries, lookup, candidates)}
        excluded = _excluded(batch)
        present = (batch.weights > 0).repeat(2)
        ahead = torch.zeros(2, 2 * batch.batch_size, dtype=torch.int64, device=batch.lhs.device)
        for table, its in queries.items():
            _count_ahead(scorer, table, [each.of(present) for each in its], excluded, lookup, candidates, ahead)
    raw, filtered = 1 + ahead.double() / 2
    outputs["raw_ranks"] = raw
    if batch.known:
        outputs["filtered_ranks"] = filtered
    by_edge = {name: values.view(2, -1).T for name, values in outputs.items()}
    return by_edge | {"relations": batch.rel, "weights": batch.weights}


@dataclass(frozen=True)
class _Queries:
    """Entities to rank, on one side, that are compared with the same candidates.

    Attributes:
      segment: that candidates go through the operator of, if they go through one.
      numbers: [n], int64, positions in the batch; batch_size more for right entities.
      vectors: [n, dim], float64, to compare candidates with.
      low, high: [n], float64, bounds of scores that are the same as the entity's own.
    """

    side: Side
    segment: Segment
    numbers: torch.Tensor
    vectors: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor

    def of(self, present: torch.Tensor) -> "_Queries":
        """Those whose number is present, bool [numbers]."""
        kept = present[self.numbers]
        parts = (x[kept] for x in (self.numbers, self.vectors, self.low, self.high))
        return _Queries(self.side, self.segment, *parts)

    def split(self, size: int) -> "list[_Queries]":
        parts = [torch.split(x, size) for x in (self.numbers, self.vectors, self.low, self.high)]
        return [_Queries(self.side, self.segment, *part) for part in zip(*parts, strict=True) if len(part[0])]

    def twice_ahead(self, rows: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """2 where a score is higher than the own entity's of the query in that row, 1 where it is the same, else 0."""
        return (scores > self.high[rows]).long() + (~(scores < self.low[rows])).long()


def _queries(scorer: EdgeScorer, batch: EdgeBatch, lookup: Lookup) -> dict[str, list[_Queries]]:
    """By the table of the entities to rank, in an order that is the same on all ranks. One lookup."""
    relations, sizes = scorer.relations, list(batch.segment_sizes)
    rel = torch.split(batch.rel, sizes)
    ids = {"lhs": torch.split(batch.lhs, sizes), "rhs": torch.split(batch.rhs, sizes)}
    places: dict[str, list[tuple[Side, int]]] = {}
    for side in SIDES:
        for table, segments in relations.segments_of(side).items():
            places.setdefault(table, []).extend((side, segment) for segment in segments)
    found = lookup({table: concat([ids[side][segment] for side, segment in its]) for table, its in places.items()})
    rows: dict[tuple[Side, int], torch.Tensor] = {}
    for table, its in places.items():
        rows.update(zip(its, torch.split(found[table].double(), [sizes[segment] for _, segment in its]), strict=True))

    queries: dict[str, list[_Queries]] = {table: [] for table in places}
    numbers = torch.arange(2 * batch.batch_size, device=batch.lhs.device).view(2, -1)
    for side, other, of_side in zip(SIDES, SIDES[::-1], numbers, strict=True):
        its_numbers = torch.split(of_side, sizes)
        vectors = scorer.queries(side, relations.segments, [rows[other, index] for index in range(len(sizes))], rel)
        for table, segments in relations.segments_of(side).items():
            alike = [[index] for index in segments] if scorer.transforms_candidates(side) else [segments]
            for part in alike:
                segment = relations.segments[part[0]]
                its_vectors = concat([vectors[index] for index in part])
                own = scorer.candidates(side, segment, concat([rows[side, index] for index in part]))
                bounds = scorer.comparator.tie_bounds(its_vectors, own)
                ranked = concat([its_numbers[index] for index in part])
                queries[table].append(_Queries(side, segment, ranked, its_vectors, *bounds))
    return queries


def _negatives_beaten(
    scorer: EdgeScorer,
    batch: EdgeBatch,
    queries: dict[str, list[_Queries]],
    lookup: Lookup,
    candidates: Candidates,
) -> torch.Tensor:
    """By number, [2 * batch], float64. Lookups of some draws of all edges at a time."""
    negatives = torch.cat([batch.negatives[side] for side in SIDES])
    beaten = torch.zeros(len(negatives), dtype=torch.float64, device=negatives.device)
    size = max(1, _LOOKED_UP // (max(len(negatives), 1) * max(candidates.embedding_dim.values())))
    for part in torch.split(negatives, size, dim=1):
        draws = part.shape[1]
        found = lookup(
            {table: concat([part[each.numbers].T.flatten() for each in its]) for table, its in queries.items()}
        )
        for table, its in queries.items():
            of_each = torch.split(found[table], [len(each.numbers) * draws for each in its])
            for each, rows in zip(its, of_each, strict=True):
                count, dim = each.vectors.shape
                at_once = max(1, _TILE_EMBEDDINGS // max(count * dim, 1)) * count
                for some in torch.split(rows, at_once) if count else ():
                    compared = scorer.candidates(each.side, each.segment, some.double())
                    query = torch.arange(count, device=rows.device).repeat(len(some) // count)
                    scores = scorer.comparator.pairs(each.vectors[query], compared)
                    lower = 2 - each.twice_ahead(query, scores)
                    beaten[each.numbers] += lower.view(-1, count).sum(0) / 2
    return beaten / negatives.shape[1]


@dataclass(frozen=True)
class _Excluded:
    """Entities that are left out of the others.

    Attributes:
      numbers: [pairs], int64, of the queries.
      entities: [pairs], int64.
      is_own: [pairs], bool: of the query's own entity, which is left out of raw ranks, too.
    """

    numbers: torch.Tensor
    entities: torch.Tensor
    is_own: torch.Tensor


def _excluded(batch: EdgeBatch) -> _Excluded:
    own = torch.cat([batch.lhs, batch.rhs])
    numbers, entities = [torch.arange(len(own), device=own.device)], [own]
    for index, side in enumerate(SIDES):
        if side in batch.known:
            position, entity = batch.known[side]
            number = position + index * batch.batch_size
            others = entity != own[number]
            numbers.append(number[others])
            entities.append(entity[others])
    every = torch.cat(numbers)
    return _Excluded(every, torch.cat(entities), torch.arange(len(every), device=own.device) < len(own))


def _count_ahead(
    scorer: EdgeScorer,
    table: str,
    queries: Sequence[_Queries],
    excluded: _Excluded,
    lookup: Lookup,
    candidates: Candidates,
    ahead: torch.Tensor,
) -> None:
    """Adds to `ahead` [raw and filtered, numbers] twice the number of the others of one table that are ahead."""
    tiles = -(-candidates.count(table) // _TILE_CANDIDATES)
    chunks = [each.split(_TILE_QUERIES) for each in queries]
    left_out = _LeftOut(table, [chunk for its in chunks for chunk in its], excluded, candidates, tiles)
    tile = 0
    for ids in candidates.blocks(table):
        rows = lookup({table: ids.to(ahead.device)})[table]
        for some in torch.split(rows, _TILE_CANDIDATES):
            wide = some.double()
            number = 0
            for its in chunks:
                compared = scorer.candidates(its[0].side, its[0].segment, wide) if its else wide
                for chunk in its:
                    scores = scorer.comparator.all_pairs(chunk.vectors, compared)
                    higher = torch.count_nonzero(scores > chunk.high[:, None], dim=1)
                    lower = torch.count_nonzero(scores < chunk.low[:, None], dim=1)
                    ahead[:, chunk.numbers] += higher + (len(some) - lower)
                    left_out.subtract(number, tile, chunk, scores, ahead)
                    number += 1
            tile += 1


class _LeftOut:
    """Excluded pairs of one table's queries, by the tile of scores that they are in."""

    def __init__(
        self, table: str, chunks: Sequence[_Queries], excluded: _Excluded, candidates: Candidates, tiles: int
    ) -> None:
        """Args:
        table: of the candidates.
        chunks: queries that tiles are of.
        excluded: of all queries.
        candidates: to rank among.
        tiles: of each chunk.
        """
        device = excluded.numbers.device
        chunk_of = torch.full((int(excluded.is_own.sum()),), -1, device=device)
        row_of = torch.zeros_like(chunk_of)
        for number, chunk in enumerate(chunks):
            chunk_of[chunk.numbers] = number
            row_of[chunk.numbers] = torch.arange(len(chunk.numbers), device=device)
        pairs = (chunk_of[excluded.numbers] >= 0).nonzero().flatten()
        positions, is_candidate = candidates.positions(table, excluded.entities[pairs])
        pairs, positions = pairs[is_candidate], positions[is_candidate]
        tile = chunk_of[excluded.numbers[pairs]] * tiles + positions // _TILE_CANDIDATES
        tile, order = tile.sort()
        pairs = pairs[order]
        self._numbers = excluded.numbers[pairs]
        self._rows = row_of[self._numbers]
        self._columns = positions[order] % _TILE_CANDIDATES
        self._is_own = excluded.is_own[pairs].long()
        self._tiles = tiles
        self._bounds = torch.searchsorted(tile, torch.arange(len(chunks) * tiles + 1, device=device)).tolist()

    def subtract(
        self, chunk_number: int, tile: int, chunk: _Queries, scores: torch.Tensor, ahead: torch.Tensor
    ) -> None:
        """Takes from `ahead` what the tile [queries, candidates] of a chunk has counted of them."""
        at = chunk_number * self._tiles + tile
        begin, end = self._bounds[at], self._bounds[at + 1]
        if begin == end:
            return
        pairs = slice(begin, end)
        rows, numbers = self._rows[pairs], self._numbers[pairs]
        counted = chunk.twice_ahead(rows, scores[rows, self._columns[pairs]])
        ahead[0].index_add_(0, numbers, -counted * self._is_own[pairs])
        ahead[1].index_add_(0, numbers, -counted)
