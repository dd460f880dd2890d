"""Searches for approximate nearest neighbors with faiss, in embeddings that are in memory.

An index groups the embeddings around centroids and codes each in 4 bits per dimension (Jegou et al., Product
Quantization for Nearest Neighbor Search, 2011; Andre et al., Quicker ADC, 2019). A search compares a query with the
codes around the nearest centroids, then with the best embeddings themselves. The returned scores are those of exact
search.
"""

import hashlib
import importlib
import json
import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import PositiveInt, TypeAdapter

from common.errors import UserError
from common.process.optional_packages import require_packages
from common.process.progress import Progress
from projects.twhin.model.config import ComparatorName
from projects.twhin.neighbors.exact import Neighbors, pair_scores
from projects.twhin.neighbors.loaded import LoadedEmbeddings
from projects.twhin.neighbors.options import RECALLS

MIN_ROWS = 1000
"""Embeddings in the smallest table that gets an index. Exact search needs milliseconds there."""

logger = logging.getLogger(__name__)

_FORMAT = 1
_INDEX, _FACTS = "index.faiss", "index.json"
_CHUNK, _ADDED_ROWS = 4096, 2**16
_TRAIN_ROWS_PER_LIST, _TRAIN_ITERATIONS = 256, 20
_TUNING_QUERIES, _TUNING_K = 1000, 10
# Multiples of k: the numbers of best codes whose embeddings are compared. The next one is tried if one is too small.
_REFINED = {"0.95": (4, 16, 64), "0.99": (8, 32, 128)}
# A sample that reaches this much more than the wanted recall makes other samples reach it, too.
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
    """Describes the embeddings of an index and how to search it. index.json holds this and the digest of index.faiss.

    Attributes:
      embeddings: digest of the embeddings; see LoadedEmbeddings.
      num_rows: number of embeddings.
      dim: length of an embedding.
      comparator: comparator of the scores.
      efforts: what to do for each of RECALLS.
    """

    embeddings: str
    num_rows: int
    dim: int
    comparator: ComparatorName
    efforts: dict[str, Effort]


def _faiss() -> Any:
    """Import faiss, whose type stubs lack much of what it has. It does not log the instruction sets that it tries."""
    logging.getLogger("faiss.loader").setLevel(logging.WARNING)
    return importlib.import_module("faiss")


class NeighborIndex:
    """An index of embeddings, and the embeddings.

    Attributes:
      facts: what the index was built from.
    """

    def __init__(self, table: LoadedEmbeddings, lists: Any, facts: IndexFacts) -> None:
        """Join the lists of faiss (IndexIVF) and the embeddings that they code."""
        self.facts = facts
        self._table = table
        self._space = _Space(table.values, facts.comparator)
        self._lists = lists
        self._flat = self._space.flat_index(table.values)

    def search(
        self, queries: NDArray[np.float32], own: NDArray[np.int64] | None, k: int, recall: str = "0.99"
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
        with Progress("searching", len(queries)) as progress:
            for begin in range(0, len(queries), _CHUNK):
                rows = slice(begin, begin + _CHUNK)
                found = self._search(queries[rows], None if own is None else own[rows], k, effort)
                positions[rows], scores[rows] = found
                # The lists that reach the recall of a few neighbors may have fewer than k rows.
                short = begin + np.flatnonzero(found.positions[:, complete - 1] < 0)
                if short.size:
                    every_list = replace(effort, num_lists=self._lists.nlist)
                    found = self._search(queries[short], None if own is None else own[short], k, every_list)
                    positions[short], scores[short] = found
                progress.add(len(queries[rows]))
        return Neighbors(positions, scores)

    def _search(self, queries: NDArray[np.float32], own: NDArray[np.int64] | None, k: int, effort: Effort) -> Neighbors:
        """Search for a few thousand queries; k is at most the number of rows."""
        found = self._candidates(queries, min(k + (own is not None), len(self._table.values)), effort)
        return self._ranked(queries, own, found, k)

    def _candidates(self, queries: NDArray[np.float32], k: int, effort: Effort) -> NDArray[np.int64]:
        faiss = _faiss()
        parameters = faiss.IndexRefineSearchParameters(
            k_factor=effort.refined, base_index_params=faiss.SearchParametersIVF(nprobe=effort.num_lists)
        )
        refined = faiss.IndexRefine(self._lists, self._flat)
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

        steps = sorted({round(2 ** (step / 4)) for step in range(80)} | {self._lists.nlist})
        for recall in RECALLS:
            for refined in _REFINED[recall]:
                for num_lists in (each for each in steps if each <= self._lists.nlist):
                    effort = measured(num_lists, refined)
                    if effort.recall >= float(recall) + _MARGIN:
                        break
                if effort.recall >= float(recall) + _MARGIN:
                    break
            self.facts.efforts[recall] = effort

    def save(self, directory: Path) -> None:
        """Write index.faiss and index.json to an existing directory."""
        faiss = _faiss()
        try:
            faiss.write_index(self._lists, str(directory / _INDEX))
        except RuntimeError as error:  # faiss reports a full disk in this way
            raise UserError(f"{directory / _INDEX}: cannot write this file: {error}") from error
        facts = asdict(self.facts) | {"format": _FORMAT, "faiss": faiss.__version__, "blake2b": _digest(directory)}
        (directory / _FACTS).write_text(json.dumps(facts, indent=2) + "\n")


class _Space:
    """Maps embeddings and queries to vectors that faiss compares.

    cos: vectors of length 1 and their products. l2: the embeddings and their distances. dot: a coordinate makes all
    embeddings equally long, so that the largest product is the smallest angle (Neyshabur and Srebro, On Symmetric and
    Asymmetric LSHs for Inner Product Search, 2015).
    """

    def __init__(self, values: NDArray[np.float32], comparator: ComparatorName) -> None:
        self._comparator = comparator
        self.dim = values.shape[1] + (comparator == "dot")
        blocks = (values[begin : begin + _CHUNK] for begin in range(0, len(values), _CHUNK))
        self._longest = max(float(_lengths(block).max()) for block in blocks) if comparator == "dot" else 1.0

    @property
    def metric(self) -> int:
        """The metric of faiss."""
        faiss = _faiss()
        return int(faiss.METRIC_L2 if self._comparator == "l2" else faiss.METRIC_INNER_PRODUCT)

    def queries(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return vectors of queries, [queries, self.dim]."""
        if self._comparator == "l2":
            return np.ascontiguousarray(values)
        vectors = np.zeros((len(values), self.dim), np.float32)
        vectors[:, : values.shape[1]] = values / _lengths(values)
        return vectors

    def rows(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return vectors of embeddings, [rows, self.dim]."""
        if self._comparator != "dot":
            return self.queries(values)
        scaled = values / max(self._longest, 1e-12)
        rest = np.sqrt(np.maximum(0, 1 - np.einsum("nd,nd->n", scaled, scaled, dtype=np.float64)))
        return np.concatenate([scaled, rest[:, None]], axis=1, dtype=np.float32)

    def flat_index(self, values: NDArray[np.float32]) -> Any:
        """Return the faiss index that holds the vectors of embeddings themselves."""
        faiss = _faiss()
        flat = faiss.IndexFlat(self.dim, self.metric)
        for begin in range(0, len(values), _CHUNK):
            flat.add(self.rows(values[begin : begin + _CHUNK]))
        return flat


def _lengths(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return lengths, [rows, 1], at least 1e-12."""
    squares = np.einsum("nd,nd->n", values, values, dtype=np.float64)
    return np.asarray(np.maximum(np.sqrt(squares), 1e-12)[:, None])


def build_index(table: LoadedEmbeddings, comparator: ComparatorName) -> NeighborIndex:
    """Build an index, and measure which efforts reach RECALLS on a sample of the embeddings.

    Raises:
      UserError: the table is too small, or faiss is not installed.
    """
    require_packages("an index", ["faiss"])
    faiss = _faiss()
    num_rows, dim = table.values.shape
    if num_rows < MIN_ROWS:
        raise UserError(
            f"{table.path}: has {num_rows:,} embeddings, but an index needs at least {MIN_ROWS:,}. Search without an "
            "index, which is fast here"
        )
    random = np.random.default_rng(0)
    space = _Space(table.values, comparator)
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


def open_index(directory: Path, table: LoadedEmbeddings, comparator: ComparatorName) -> NeighborIndex:
    """Open an index that was built from a table.

    Raises:
      UserError: faiss is not installed, or the directory does not hold an index, is damaged, or holds an index of other
        embeddings or of another comparator.
    """
    require_packages("--index", ["faiss"])
    faiss = _faiss()
    facts, digest = _read_facts(directory)
    rebuild = "Build it again with python -m projects.twhin.neighbors.build_index"
    if facts.comparator != comparator:
        raise UserError(
            f"--index {directory}: was built for --comparator {facts.comparator}, but this search compares by "
            f"{comparator}. Give --comparator {facts.comparator}, or another index"
        )
    if (facts.embeddings, facts.num_rows, facts.dim) != (table.digest, *table.values.shape):
        rows, dim = table.values.shape
        raise UserError(
            f"--index {directory}: was built from other embeddings ({facts.num_rows:,} of dimension {facts.dim}) than "
            f"those of {table.path} ({rows:,} of dimension {dim}). {rebuild}"
        )
    try:
        if _digest(directory) != digest:
            raise UserError(f"--index {directory}: {_INDEX} is damaged: its digest differs from {_FACTS}. {rebuild}")
        lists = faiss.read_index(str(directory / _INDEX))
    except (OSError, RuntimeError) as error:
        raise UserError(f"--index {directory}: cannot read {_INDEX}: {error}. {rebuild}") from error
    return NeighborIndex(table, lists, facts)


def _read_facts(directory: Path) -> tuple[IndexFacts, str]:
    """Return the content of index.json: the facts, and the digest of index.faiss."""
    path = directory / _FACTS
    if not path.exists():
        raise UserError(
            f"--index {directory}: no {_FACTS} there, so this is not an index. Give the --out of python -m "
            "projects.twhin.neighbors.build_index"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != _FORMAT:
            raise UserError(
                f"--index {directory}: has the format {content['format']}, but this release reads {_FORMAT}. Build the "
                "index again"
            )
        facts = TypeAdapter(IndexFacts).validate_python(content)
        if missing := set(RECALLS) - set(facts.efforts):
            raise KeyError(f"efforts: {min(missing)}")
        return facts, content["blake2b"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"--index {directory}: {_FACTS} is damaged: {error}. Build the index again") from error


def _digest(directory: Path) -> str:
    with (directory / _INDEX).open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
