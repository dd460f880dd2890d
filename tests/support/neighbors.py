"""Writes embeddings, and finds nearest neighbors by a full sort, one row at a time."""

from pathlib import Path
from typing import Any

import numpy as np

from common.files.embedding_files import EmbeddingFile, write_embeddings


def write_groups(path: Path, num_rows: int, dim: int = 12) -> EmbeddingFile:
    """Write embeddings of different lengths, around 30 centers."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal((30, dim))[rng.integers(30, size=num_rows)]
    values += 0.4 * rng.standard_normal((num_rows, dim))
    values *= rng.lognormal(0, 0.5, (num_rows, 1))
    write_embeddings(path, None, values.astype(np.float32))
    return EmbeddingFile(path)


def expected_neighbors(
    values: np.ndarray[Any, Any], query: np.ndarray[Any, Any], own: int | None, k: int, comparator: str
) -> tuple[list[int], list[float]]:
    """Return the positions and scores of the k nearest, from a full sort in float64."""
    rows, one = values.astype(np.float64), query.astype(np.float64)
    scores = {
        "dot": lambda: [float(np.dot(row, one)) for row in rows],
        "cos": lambda: [float(np.dot(row, one) / np.linalg.norm(row) / np.linalg.norm(one)) for row in rows],
        "l2": lambda: [-float(np.linalg.norm(row - one)) for row in rows],
    }[comparator]()
    order = sorted((i for i in range(len(rows)) if i != own), key=lambda i: (-scores[i], i))[:k]
    return order, [scores[i] for i in order]
