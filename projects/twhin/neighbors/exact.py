"""Finds the exact nearest neighbors of a batch of embeddings. Knows neither names nor indexes.

A product of matrices finds the few rows that can be among the best, and only these are scored again. Holds one row
group of embeddings, and k rows for each query, in memory.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from common.files.embedding_files import EmbeddingFile
from common.process.progress import Progress
from projects.twhin.model.config import ComparatorName

# Bounds the product of one row group and some queries: 32 MiB of float64.
_PRODUCT_SIZE = 2**22


class Neighbors(NamedTuple):
    """Nearest neighbors of queries, best first.

    Attributes:
      positions: positions in the searched file, [queries, k] int64; -1 if there are fewer than k.
      scores: scores, [queries, k] float64; -inf if there are fewer than k.
    """

    positions: NDArray[np.int64]
    scores: NDArray[np.float64]


def nearest(
    file: EmbeddingFile, queries: NDArray[np.float32], own: NDArray[np.int64] | None, k: int, comparator: ComparatorName
) -> Neighbors:
    """Return the nearest neighbors of each query, in the order of the queries.

    Neighbors with equal scores are ordered by index. Embeddings with a non-finite score are skipped.

    Args:
      file: file to search.
      queries: query embeddings, [queries, file.dim], finite.
      own: positions of the queries in the file, [queries], to skip. None if the queries are not in the file.
      k: number of neighbors per query; at most the number of rows is used.
      comparator: cos: cosine (norms are at least 1e-12), dot: dot product, l2: negative Euclidean distance.

    Raises:
      DataError: the file cannot be read.
    """
    k = min(k, file.num_rows)
    best = [_TopK(k) for _ in queries]
    limits = np.full(len(queries), -np.inf)  # keys that a row must reach
    transformed = _transformed(queries.astype(np.float64), comparator)
    with Progress("comparing", file.num_rows) as progress:
        for block in file.blocks():
            finite = np.flatnonzero(np.isfinite(block.values).all(1))
            values = block.values[finite].astype(np.float64)
            keys = _Keys(values, comparator)
            step = max(1, _PRODUCT_SIZE // max(1, len(values)))
            for begin in range(0, len(queries), step):
                chunk = slice(begin, begin + step)
                for number, rows in keys.candidates(transformed[chunk], limits[chunk], k):
                    query = begin + number
                    rows = rows if own is None else rows[block.start + finite[rows] != own[query]]
                    scores = pair_scores(values[rows], queries[query].astype(np.float64), comparator)
                    best[query].add(block.start + finite[rows], block.indices[finite[rows]], scores)
                    if len(best[query].scores) == k:
                        limits[query] = _key(best[query].scores[-1], transformed[query], comparator)
            progress.add(len(block.indices))
    positions, all_scores = np.full((len(queries), k), -1), np.full((len(queries), k), -np.inf)
    for number, top in enumerate(best):
        positions[number, : len(top.scores)] = top.positions
        all_scores[number, : len(top.scores)] = top.scores
    return Neighbors(positions, all_scores)


def pair_scores(
    values: NDArray[np.float64], query: NDArray[np.float64], comparator: ComparatorName
) -> NDArray[np.float64]:
    """Return the scores of rows [..., dim] and queries that broadcast to their shape, [...] float64.

    Equal rows get equal scores at any position. BLAS does not guarantee that: its results may differ in the last bit.
    """
    if comparator == "l2":
        difference = values - query
        return np.asarray(-np.sqrt(np.einsum("...d,...d->...", difference, difference)))
    product = np.einsum("...d,...d->...", values, query)
    if comparator == "dot":
        return np.asarray(product)
    return np.asarray(product / _norms(values) / _norms(query))


def _norms(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.maximum(np.sqrt(np.einsum("...d,...d->...", values, values)), 1e-12))


def _transformed(queries: NDArray[np.float64], comparator: ComparatorName) -> NDArray[np.float64]:
    return queries / _norms(queries)[:, None] if comparator == "cos" else queries


def _key(score: float, query: NDArray[np.float64], comparator: ComparatorName) -> float:
    """Return the key of a score: -|q - x|^2 = 2 (q.x - |x|^2 / 2) - |q|^2 for l2, otherwise the score."""
    return float((query @ query - score * score) / 2) if comparator == "l2" else score


class _Keys:
    """Orders the rows of a block like their scores, by keys that a matrix product computes.

    A key is q.x plus a term of the row. With float32 values, float64 neither overflows nor underflows.
    """

    def __init__(self, values: NDArray[np.float64], comparator: ComparatorName) -> None:
        norms = _norms(values)
        self._rows = values / norms[:, None] if comparator == "cos" else values
        self._terms = -(norms**2) / 2 if comparator == "l2" else None
        self._largest = 1.0 if comparator == "cos" else float(norms.max(initial=0))
        # The error of a sum of n products is at most n 2^-53 of the sum of their sizes, in any order (Higham, Accuracy
        # and Stability of Numerical Algorithms, 3.1). The factor 16 covers the terms, the exact scores and their keys.
        self._rounding = 16 * (values.shape[1] + 16) * 2.0**-53

    def candidates(
        self, queries: NDArray[np.float64], limits: NDArray[np.float64], k: int
    ) -> list[tuple[int, NDArray[np.int64]]]:
        """Return the rows of the block that may be among the k best of each query, for queries that have any.

        Args:
          queries: transformed queries, [queries, dim].
          limits: keys that a row must reach, [queries]; -inf if fewer than k rows are known.
          k: number of neighbors, without the query itself.
        """
        keys = queries @ self._rows.T
        if self._terms is not None:
            keys += self._terms
        if k + 1 < keys.shape[1] and np.isneginf(limits).any():  # the query itself may be a row
            limits = np.maximum(limits, np.partition(keys, -(k + 1), axis=1)[:, -(k + 1)])
        errors = self._rounding * (np.linalg.norm(queries, axis=1) + self._largest) ** 2
        competitive = keys >= (limits - errors)[:, None]
        return [(int(number), np.flatnonzero(competitive[number])) for number in np.flatnonzero(competitive.any(1))]


class _TopK:
    """Keeps the k rows with the highest scores so far.

    Attributes:
      positions: positions in the file, best first, [at most k] int64.
      scores: scores, [at most k] float64.
    """

    def __init__(self, k: int) -> None:
        self._k = k
        self.positions = np.empty(0, np.int64)
        self.scores = np.empty(0, np.float64)
        self._indices = np.empty(0, np.int64)

    def add(self, positions: NDArray[np.int64], indices: NDArray[np.int64], scores: NDArray[np.float64]) -> None:
        """Add rows, [rows] each. Ties keep the row with the lower index."""
        positions = np.concatenate([self.positions, positions])
        indices = np.concatenate([self._indices, indices])
        scores = np.concatenate([self.scores, scores])
        order = np.lexsort((indices, -scores))[: self._k]
        self.positions, self._indices, self.scores = positions[order], indices[order], scores[order]
