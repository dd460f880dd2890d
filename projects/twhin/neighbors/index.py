"""Searches for approximate nearest neighbors with faiss, in embeddings that are in memory.

An index groups the embeddings around centroids and codes each in 4 bits per dimension (Jegou et al., Product
Quantization for Nearest Neighbor Search, 2011; Andre et al., Quicker ADC, 2019). A search compares a query with the
codes around the nearest centroids, then with the best embeddings themselves. The returned scores are those of exact
search.
"""

import logging
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import PositiveInt

from common.errors import UserError
from common.process.optional_packages import require_packages
from common.process.progress import Progress
from projects.twhin.model.config import ComparatorName
from projects.twhin.neighbors.exact import Neighbors, pair_scores
from projects.twhin.neighbors.loaded import LoadedEmbeddings
from projects.twhin.neighbors.options import RECALLS
from projects.twhin.neighbors.space import Space, import_faiss

MIN_ROWS = 1000
"""Embeddings in the smallest table that gets an index. Exact search needs milliseconds there."""

logger = logging.getLogger(__name__)

_CHUNK, _ADDED_ROWS = 4096, 2**16
# Bounds the candidates of the queries that are searched together: up to 200 MB of their codes and embeddings.
_CANDIDATE_VALUES = 2**23
_TRAIN_ROWS_PER_LIST, _TRAIN_ITERATIONS = 256, 20
_TUNING_QUERIES, _TUNING_K = 1000, 10
# Numbers of embeddings that are compared, as multiples of k. If one does not reach the recall, the next is tried.
_REFINED = {"0.95": (4, 16, 64), "0.99": (8, 32, 128)}
# The sample must exceed the wanted recall by this much, so that other queries reach it too.
_MARGIN = 0.003


@dataclass(frozen=True)
class Effort:
    """Sets how much a search compares, and records the recall that this reaches.

    Attributes:
      num_lists: number of centroids whose embeddings are compared.
      refined: number of embeddings that are compared after their codes, as a multiple of k.
      recall: measured share of the ten exact nearest neighbors that were found, over a sample of the embeddings.
    """

    num_lists: PositiveInt
    refined: PositiveInt
    recall: float


@dataclass(frozen=True)
class IndexFacts:
    """Describes the embeddings of an index and how to search it.

    Attributes:
      embeddings: digest of the embeddings; see LoadedEmbeddings.
      num_rows: number of embeddings.
      dim: length of an embedding.
      comparator: comparator of the scores.
      efforts: how much to compare for each of RECALLS.
    """

    embeddings: str
    num_rows: int
    dim: int
    comparator: ComparatorName
    efforts: dict[str, Effort]


class NeighborIndex:
    """An index of embeddings, and the embeddings.

    Attributes:
      facts: what the index was built from.
      lists: the lists of faiss (IndexIVF).
    """

    def __init__(self, table: LoadedEmbeddings, lists: Any, facts: IndexFacts) -> None:
        """Join the lists of faiss and the embeddings that they code."""
        self.facts = facts
        self.lists = lists
        self._table = table
        self._space = Space(table.values, facts.comparator)
        self._flat = self._space.flat_index(table.values)

    def search(
        self, queries: NDArray[np.float32], own: NDArray[np.int64] | None, k: int, recall: str = RECALLS[-1]
    ) -> Neighbors:
        """Return approximate nearest neighbors of each query: some of the best k rows may be missing.

        Scores and ties are those of exact.nearest().

        Args:
          queries: query embeddings, [queries, dim], finite.
          own: positions of the queries in the table, [queries], to skip. None if the queries are not in the table.
          k: number of neighbors per query; at most the number of rows is used.
          recall: one of RECALLS.
        """
        effort = self.facts.efforts[recall]
        k = min(k, len(self._table.values))
        complete = min(k, len(self._table.values) - (own is not None))
        positions, scores = np.full((len(queries), k), -1), np.full((len(queries), k), -np.inf)
        values_per_query = (k + 1) * (effort.refined + self._table.values.shape[1])
        size = min(_CHUNK, max(1, _CANDIDATE_VALUES // values_per_query))
        with Progress("searching", len(queries)) as progress:
            for begin in range(0, len(queries), size):
                rows = slice(begin, begin + size)
                found = self._search(queries[rows], None if own is None else own[rows], k, effort)
                positions[rows], scores[rows] = found
                # The lists that reach the recall of a few neighbors may have fewer than k rows.
                short = begin + np.flatnonzero(found.positions[:, complete - 1] < 0)
                if short.size:
                    every_list = replace(effort, num_lists=self.lists.nlist)
                    found = self._search(queries[short], None if own is None else own[short], k, every_list)
                    positions[short], scores[short] = found
                progress.add(len(queries[rows]))
        return Neighbors(positions, scores)

    def _search(self, queries: NDArray[np.float32], own: NDArray[np.int64] | None, k: int, effort: Effort) -> Neighbors:
        """Search for a few thousand queries; k is at most the number of rows."""
        found = self._candidates(queries, min(k + (own is not None), len(self._table.values)), effort)
        return self._ranked(queries, own, found, k)

    def _candidates(self, queries: NDArray[np.float32], k: int, effort: Effort) -> NDArray[np.int64]:
        faiss = import_faiss()
        parameters = faiss.IndexRefineSearchParameters(
            k_factor=effort.refined, base_index_params=faiss.SearchParametersIVF(nprobe=effort.num_lists)
        )
        refined = faiss.IndexRefine(self.lists, self._flat)
        _, positions = refined.search(self._space.queries(queries), k, params=parameters)
        return np.asarray(positions, np.int64)

    def _ranked(
        self, queries: NDArray[np.float32], own: NDArray[np.int64] | None, found: NDArray[np.int64], k: int
    ) -> Neighbors:
        """Return the best k of the candidates, [queries, candidates] positions or -1, with exact scores."""
        values, indices = self._table.values[found].astype(np.float64), self._table.indices[found]
        scores = pair_scores(values, queries[:, None].astype(np.float64), self.facts.comparator)
        skipped = found < 0 if own is None else (found < 0) | (found == own[:, None])
        scores[skipped] = -np.inf
        order = np.lexsort((indices, -scores), axis=1)[:, :k]
        neighbors = Neighbors(np.full((len(queries), k), -1), np.full((len(queries), k), -np.inf))
        neighbors.positions[:, : order.shape[1]] = np.take_along_axis(np.where(skipped, -1, found), order, axis=1)
        neighbors.scores[:, : order.shape[1]] = np.take_along_axis(scores, order, axis=1)
        return neighbors

    def tune(self, rows: NDArray[np.int64]) -> None:
        """Find the smallest effort that reaches each of RECALLS, with rows of the table as queries.

        If no effort reaches a recall, the largest one is used.
        """
        queries = self._table.values[rows]
        _, exact = self._flat.search(self._space.queries(queries), _TUNING_K + 1)
        # A neighbor with the score of the last exact one is as good.
        worst = self._ranked(queries, rows, exact, _TUNING_K).scores[:, -1:]

        def measured(num_lists: int, refined: int) -> Effort:
            effort = Effort(num_lists, refined, 0.0)
            found = self._search(queries, rows, _TUNING_K, effort)
            return replace(effort, recall=float((found.scores >= worst).mean()))

        steps = sorted({round(2 ** (step / 4)) for step in range(80)} | {self.lists.nlist})
        for recall in RECALLS:
            for refined in _REFINED[recall]:
                for num_lists in (each for each in steps if each <= self.lists.nlist):
                    effort = measured(num_lists, refined)
                    if effort.recall >= float(recall) + _MARGIN:
                        break
                if effort.recall >= float(recall) + _MARGIN:
                    break
            self.facts.efforts[recall] = effort


def build_index(table: LoadedEmbeddings, comparator: ComparatorName) -> NeighborIndex:
    """Build an index, and measure which efforts reach RECALLS on a sample of the embeddings.

    Raises:
      UserError: the table is too small, or faiss is not installed.
    """
    require_packages("an index", ["faiss"])
    faiss = import_faiss()
    num_rows, dim = table.values.shape
    if num_rows < MIN_ROWS:
        raise UserError(
            f"{table.path}: has {num_rows:,} embeddings, but an index needs at least {MIN_ROWS:,}. Search without an "
            "index, which is fast here"
        )
    random = np.random.default_rng(0)
    space = Space(table.values, comparator)
    num_lists = int(num_rows**0.5)
    lists = faiss.index_factory(space.dim, f"IVF{num_lists},PQ{space.dim}x4fsr", space.metric)
    lists.cp.niter = _TRAIN_ITERATIONS
    lists.cp.min_points_per_centroid = 1
    sample = random.choice(num_rows, min(num_rows, _TRAIN_ROWS_PER_LIST * num_lists), replace=False)
    logger.info("finding %s groups of embeddings", f"{num_lists:,}")
    lists.train(space.rows(table.values[np.sort(sample)]))
    with Progress("coding", num_rows) as progress:
        for begin in range(0, num_rows, _ADDED_ROWS):
            lists.add(space.rows(table.values[begin : begin + _ADDED_ROWS]))
            progress.add(min(_ADDED_ROWS, num_rows - begin))
    logger.info("measuring the recall of searches")
    index = NeighborIndex(table, lists, IndexFacts(table.digest, num_rows, dim, comparator, {}))
    index.tune(random.choice(num_rows, min(num_rows, _TUNING_QUERIES), replace=False))
    return index
