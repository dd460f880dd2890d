"""Ranks edges' entities among all entities of a table or a sample of them.

Candidates are looked up in blocks. These lookups are collective, so they are the same on all processes, regardless of
the edges of each process. Scores are computed in float64, even under autocast.
"""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from common.errors import ConfigError
from common.modules.embedding.tables import Lookup
from common.process.memory import memory_shortage
from projects.twhin.data.batch import EdgeBatch
from projects.twhin.data.relations import SIDES, Segment, Side
from projects.twhin.model.config import RankingConfig, TwhinModelConfig
from projects.twhin.model.operators import concat
from projects.twhin.model.scorer import EdgeScorer

# Number of scores computed at once: 8 MB of float64, which fits into a cache.
_TILE_QUERIES, _TILE_CANDIDATES = 512, 2048
_TILE_EMBEDDINGS = 2**18

# Number of embedding values looked up at once: 16 MB of float32.
_LOOKUP_VALUES = 2**22


class Candidates:
    """The entities of each table that edges' own entities are ranked among: the same for all edges and processes.

    Attributes:
      embedding_dim: dimension of each table, by name.
    """

    def __init__(self, config: RankingConfig, model: TwhinModelConfig, seed: int) -> None:
        """Draw the sample of each table that has more rows than config.candidates.

        Args:
          config: number of candidates.
          model: tables of the model.
          seed: seed of the samples.

        Raises:
          ConfigError: there is too little memory for the samples.
        """
        self.embedding_dim = {name: table.embedding_dim for name, table in model.tables.items()}
        self._num_embeddings = {name: table.num_embeddings for name, table in model.tables.items()}
        self._samples: dict[str, torch.Tensor] = {}
        for table, rows in self._num_embeddings.items():
            if config.candidates is not None and config.candidates < rows:
                # numpy draws large samples from an array of all rows.
                if shortage := memory_shortage(8 * (rows if config.candidates > rows // 50 else config.candidates)):
                    raise ConfigError(
                        f"metrics.candidates: drawing {config.candidates:,} of the {rows:,} rows of table {table} "
                        f"{shortage}. Use fewer candidates"
                    )
                generator = np.random.default_rng([seed, zlib.crc32(table.encode())])
                drawn = generator.choice(rows, config.candidates, replace=False, shuffle=False)
                self._samples[table] = torch.from_numpy(np.sort(drawn))

    def count(self, table: str) -> int:
        """Return the number of candidates in a table."""
        return len(self._samples[table]) if table in self._samples else self._num_embeddings[table]

    def blocks(self, table: str) -> Iterator[torch.Tensor]:
        """Yield a table's candidates in ascending order, int64, in blocks of equal size. The last may be smaller."""
        size = max(1, _LOOKUP_VALUES // self.embedding_dim[table] // _TILE_CANDIDATES) * _TILE_CANDIDATES
        for begin in range(0, count := self.count(table), size):
            end = min(begin + size, count)
            yield self._samples[table][begin:end] if table in self._samples else torch.arange(begin, end)

    def positions(self, table: str, entities: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the positions of entities among a table's candidates, and which of them are candidates.

        Args:
          table: name of the table.
          entities: [n], int64.

        Returns:
          The positions, [n], int64, which are meaningless for other entities, and a mask that is True for candidates,
          [n], bool.
        """
        if table not in self._samples:
            return entities, torch.ones_like(entities, dtype=torch.bool)
        sample = self._samples[table].to(entities.device)
        positions = torch.searchsorted(sample, entities).clamp_max(len(sample) - 1)
        return positions, sample[positions] == entities


def rank_edges(scorer: EdgeScorer, batch: EdgeBatch, lookup: Lookup, candidates: Candidates) -> dict[str, torch.Tensor]:
    """Rank both entities of each edge among the candidates of their tables.

    A rank is 1 + the number of other candidates with a higher score + half the number of those with the same score.
    This is the mean rank of the ties. The edge's own entity is recognized by its id and never counts as one of the
    others, even if it is a candidate. Filtered ranks also ignore the entities of batch.known. A NaN score, or a score
    compared with NaN, counts as the same. Padding (edges of weight 0) is not ranked and gets rank 1.

    Collective if `lookup` is: all processes must pass the same number of edges and negatives.

    Args:
      scorer: scorer with float32 parameters.
      batch: edges. If batch.known is given, filtered ranks are also computed.
      lookup: looks up rows of tables.
      candidates: candidates to rank among.

    Returns:
      Outputs by name. "raw_ranks", "filtered_ranks" and "negatives_beaten", the share of the edge's negatives with a
      lower score (ties count half), if it has any: [batch, 2], float64, left entities first. "relations": [batch],
      int64. "weights": [batch], float32.
    """
    with torch.autocast(batch.lhs.device.type, enabled=False):
        queries = _queries(scorer, batch, lookup)
        outputs: dict[str, torch.Tensor] = {}
        if batch.negatives:
            outputs["negatives_beaten"] = _negatives_beaten(scorer, batch, queries, lookup, candidates)
        excluded = _excluded(batch)
        present = (batch.weights > 0).repeat(2)
        ahead = torch.zeros(2, 2 * batch.batch_size, dtype=torch.int64, device=batch.lhs.device)
        for table, table_queries in queries.items():
            present_queries = [each.select(present) for each in table_queries]
            _count_ahead(scorer, table, present_queries, excluded, lookup, candidates, ahead)
    raw, filtered = 1 + ahead.double() / 2
    outputs["raw_ranks"] = raw
    if batch.known:
        outputs["filtered_ranks"] = filtered
    by_edge = {name: values.view(2, -1).T for name, values in outputs.items()}
    return by_edge | {"relations": batch.rel, "weights": batch.weights}


@dataclass(frozen=True)
class _Queries:
    """Entities to rank on one side, which are compared with the same candidate vectors.

    Attributes:
      side: side of the entities.
      segment: segment whose operator transforms the candidates, if any operator does.
      numbers: numbers of the queries: [n], int64. A number is a position in the batch, plus the batch size for right
        entities.
      vectors: vectors to compare candidates with: [n, dim], float64.
      low, high: bounds of the scores that count as the score of the entity itself: [n], float64.
    """

    side: Side
    segment: Segment
    numbers: torch.Tensor
    vectors: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor

    def select(self, present: torch.Tensor) -> "_Queries":
        """Return the queries whose numbers are present. `present` is a mask over all numbers, bool."""
        kept = present[self.numbers]
        parts = (x[kept] for x in (self.numbers, self.vectors, self.low, self.high))
        return _Queries(self.side, self.segment, *parts)

    def split(self, size: int) -> "list[_Queries]":
        """Split into parts of at most `size` queries, none of them empty."""
        parts = [torch.split(x, size) for x in (self.numbers, self.vectors, self.low, self.high)]
        return [_Queries(self.side, self.segment, *part) for part in zip(*parts, strict=True) if len(part[0])]

    def twice_ahead(self, rows: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return 2 for scores above that of the row's own entity, 1 for the same score, and 0 for scores below."""
        return (scores > self.high[rows]).long() + (~(scores < self.low[rows])).long()


def _queries(scorer: EdgeScorer, batch: EdgeBatch, lookup: Lookup) -> dict[str, list[_Queries]]:
    """Return the queries by the table of the entities to rank, in the same order on all processes.

    Embeddings are looked up once.
    """
    relations, sizes = scorer.relations, list(batch.segment_sizes)
    rel = torch.split(batch.rel, sizes)
    ids = {"lhs": torch.split(batch.lhs, sizes), "rhs": torch.split(batch.rhs, sizes)}
    uses: dict[str, list[tuple[Side, int]]] = {}
    for side in SIDES:
        for table, segments in relations.segments_of(side).items():
            uses.setdefault(table, []).extend((side, segment) for segment in segments)
    looked_up = lookup(
        {table: concat([ids[side][segment] for side, segment in table_uses]) for table, table_uses in uses.items()}
    )
    rows: dict[tuple[Side, int], torch.Tensor] = {}
    for table, table_uses in uses.items():
        parts = torch.split(looked_up[table].double(), [sizes[segment] for _, segment in table_uses])
        rows.update(zip(table_uses, parts, strict=True))

    queries: dict[str, list[_Queries]] = {table: [] for table in uses}
    numbers = torch.arange(2 * batch.batch_size, device=batch.lhs.device).view(2, -1)
    for side, other, side_numbers in zip(SIDES, SIDES[::-1], numbers, strict=True):
        segment_numbers = torch.split(side_numbers, sizes)
        vectors = scorer.queries(side, relations.segments, [rows[other, index] for index in range(len(sizes))], rel)
        for table, segments in relations.segments_of(side).items():
            parts_of_table = [[index] for index in segments] if scorer.transforms_candidates(side) else [segments]
            for part in parts_of_table:
                segment = relations.segments[part[0]]
                part_vectors = concat([vectors[index] for index in part])
                own = scorer.candidates(side, segment, concat([rows[side, index] for index in part]))
                bounds = scorer.comparator.tie_bounds(part_vectors, own)
                part_numbers = concat([segment_numbers[index] for index in part])
                queries[table].append(_Queries(side, segment, part_numbers, part_vectors, *bounds))
    return queries


def _negatives_beaten(
    scorer: EdgeScorer,
    batch: EdgeBatch,
    queries: dict[str, list[_Queries]],
    lookup: Lookup,
    candidates: Candidates,
) -> torch.Tensor:
    """Return the share of negatives that each query's own entity beats, by number: [2 * batch], float64.

    Each lookup covers a part of the draws of all edges.
    """
    negatives = torch.cat([batch.negatives[side] for side in SIDES])
    beaten = torch.zeros(len(negatives), dtype=torch.float64, device=negatives.device)
    size = max(1, _LOOKUP_VALUES // (max(len(negatives), 1) * max(candidates.embedding_dim.values())))
    for part in torch.split(negatives, size, dim=1):
        draws = part.shape[1]
        looked_up = lookup(
            {
                table: concat([part[each.numbers].T.flatten() for each in table_queries])
                for table, table_queries in queries.items()
            }
        )
        for table, table_queries in queries.items():
            parts = torch.split(looked_up[table], [len(each.numbers) * draws for each in table_queries])
            for each, rows in zip(table_queries, parts, strict=True):
                beaten[each.numbers] += _count_beaten(scorer, each, rows)
    return beaten / negatives.shape[1]


def _count_beaten(scorer: EdgeScorer, queries: _Queries, rows: torch.Tensor) -> torch.Tensor:
    """Return the number of negatives with a lower score, ties counting half: [n], float64.

    Args:
      scorer: scorer of the model.
      queries: n queries.
      rows: embeddings of the negatives, one draw of all queries after the other: [draws * n, dim].
    """
    count, dim = queries.vectors.shape
    beaten = torch.zeros(count, dtype=torch.float64, device=rows.device)
    rows_per_tile = max(1, _TILE_EMBEDDINGS // max(count * dim, 1)) * count
    for tile in torch.split(rows, rows_per_tile) if count else ():
        compared = scorer.candidates(queries.side, queries.segment, tile.double())
        query = torch.arange(count, device=rows.device).repeat(len(tile) // count)
        scores = scorer.comparator.pairs(queries.vectors[query], compared)
        twice_beaten = 2 - queries.twice_ahead(query, scores)
        beaten += twice_beaten.view(-1, count).sum(0) / 2
    return beaten


@dataclass(frozen=True)
class _Excluded:
    """Pairs of a query and an entity that its rank ignores.

    Attributes:
      numbers: numbers of the queries: [pairs], int64.
      entities: ignored entities: [pairs], int64.
      is_own: True for the query's own entity, which raw ranks also ignore: [pairs], bool.
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
    all_numbers = torch.cat(numbers)
    is_own = torch.arange(len(all_numbers), device=own.device) < len(own)
    return _Excluded(all_numbers, torch.cat(entities), is_own)


def _count_ahead(
    scorer: EdgeScorer,
    table: str,
    queries: Sequence[_Queries],
    excluded: _Excluded,
    lookup: Lookup,
    candidates: Candidates,
    ahead: torch.Tensor,
) -> None:
    """Add to `ahead`, for each query, twice the number of other candidates that are ahead of its own entity.

    Args:
      scorer: scorer of the model.
      table: table of the entities.
      queries: queries for entities of this table.
      excluded: excluded pairs of all queries.
      lookup: looks up rows of tables.
      candidates: candidates to rank among.
      ahead: counts for raw and filtered ranks, by number: [2, numbers], int64.
    """
    tiles = -(-candidates.count(table) // _TILE_CANDIDATES)
    chunks = [each.split(_TILE_QUERIES) for each in queries]
    correction = _ExclusionCorrection(
        table, [chunk for parts in chunks for chunk in parts], excluded, candidates, tiles
    )
    tile = 0
    for ids in candidates.blocks(table):
        block_rows = lookup({table: ids.to(ahead.device)})[table]
        for tile_rows in torch.split(block_rows, _TILE_CANDIDATES):
            wide = tile_rows.double()
            chunk_number = 0
            for parts in chunks:
                compared = scorer.candidates(parts[0].side, parts[0].segment, wide) if parts else wide
                for chunk in parts:
                    scores = scorer.comparator.all_pairs(chunk.vectors, compared)
                    higher = torch.count_nonzero(scores > chunk.high[:, None], dim=1)
                    lower = torch.count_nonzero(scores < chunk.low[:, None], dim=1)
                    ahead[:, chunk.numbers] += higher + (len(tile_rows) - lower)
                    correction.subtract(chunk_number, tile, chunk, scores, ahead)
                    chunk_number += 1
            tile += 1


class _ExclusionCorrection:
    """Subtracts the excluded pairs of one table's queries from their counts, tile by tile.

    A tile is the matrix of scores of one chunk of queries and _TILE_CANDIDATES candidates.
    """

    def __init__(
        self, table: str, chunks: Sequence[_Queries], excluded: _Excluded, candidates: Candidates, tiles: int
    ) -> None:
        """Sort the excluded pairs by tile.

        Args:
          table: table of the candidates.
          chunks: chunks of queries for this table.
          excluded: excluded pairs of all queries.
          candidates: candidates to rank among.
          tiles: number of tiles per chunk.
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
        """Subtract the counts that a tile's excluded pairs added to `ahead`.

        Args:
          chunk_number: position of the chunk.
          tile: position of the tile within the chunk.
          chunk: queries of the chunk.
          scores: scores of the tile: [queries, candidates].
          ahead: counts for raw and filtered ranks, by number: [2, numbers], int64.
        """
        index = chunk_number * self._tiles + tile
        begin, end = self._bounds[index], self._bounds[index + 1]
        if begin == end:
            return
        pairs = slice(begin, end)
        rows, numbers = self._rows[pairs], self._numbers[pairs]
        counted = chunk.twice_ahead(rows, scores[rows, self._columns[pairs]])
        ahead[0].index_add_(0, numbers, -counted * self._is_own[pairs])
        ahead[1].index_add_(0, numbers, -counted)
