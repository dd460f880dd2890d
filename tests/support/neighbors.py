"""Finds nearest neighbors by a full sort, one row at a time."""

from typing import Any

import numpy as np


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
