"""Maps embeddings to vectors that faiss compares, so that their order is that of a comparator's scores."""

import importlib
import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray

from projects.twhin.model.config import ComparatorName

_CHUNK = 4096


def import_faiss() -> Any:
    """Return faiss, whose type stubs lack much of what it has. It does not log the instruction sets that it tries."""
    logging.getLogger("faiss.loader").setLevel(logging.WARNING)
    return importlib.import_module("faiss")


class Space:
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
        faiss = import_faiss()
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
        faiss = import_faiss()
        flat = faiss.IndexFlat(self.dim, self.metric)
        for begin in range(0, len(values), _CHUNK):
            flat.add(self.rows(values[begin : begin + _CHUNK]))
        return flat


def _lengths(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return lengths, [rows, 1], at least 1e-12."""
    squares = np.einsum("nd,nd->n", values, values, dtype=np.float64)
    return np.asarray(np.maximum(np.sqrt(squares), 1e-12)[:, None])
