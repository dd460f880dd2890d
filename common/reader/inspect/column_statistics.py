"""Computes statistics of a column's values in one pass over blocks."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Number of values that stay in a core's cache while several passes read them.
_BLOCK = 1 << 16


class ColumnStatistics:
    """Count, extremes, mean and standard deviation of all values added so far.

    Attributes:
      count: number of values.
      not_finite: number of NaN and infinite values; the other attributes ignore them.
      zeros: number of values that are 0.
      minimum, maximum: extremes, exact for 64-bit integers too; None before the first finite value.
      mean: mean in float64; NaN before the first finite value.
    """

    def __init__(self) -> None:
        self.count = 0
        self.not_finite = 0
        self.zeros = 0
        self.minimum: float | None = None
        self.maximum: float | None = None
        self.mean = math.nan
        self._squares = 0.0
        """Sum of squared distances from the mean."""

    @property
    def standard_deviation(self) -> float:
        """Population standard deviation of the finite values; NaN before the first of them."""
        finite = self.count - self.not_finite
        return math.sqrt(self._squares / finite) if finite else math.nan

    def add(self, values: NDArray[Any]) -> None:
        """Add values: integers, booleans or floats of any shape."""
        flat = values.reshape(-1)
        scratch = np.empty(min(flat.size, _BLOCK))
        with np.errstate(over="ignore", invalid="ignore"):  # sums of infinities, or of doubles near their limit
            for begin in range(0, flat.size, _BLOCK):
                self.merge(_of_block(flat[begin : begin + _BLOCK], scratch))

    def merge(self, other: "ColumnStatistics") -> None:
        """Add the values of `other`.

        Means and squares use the pairwise update of Chan, Golub and LeVeque, "Algorithms for computing the sample
        variance" (1983), which never subtracts large sums.
        """
        finite, others = self.count - self.not_finite, other.count - other.not_finite
        self.count += other.count
        self.not_finite += other.not_finite
        self.zeros += other.zeros
        if other.minimum is None or other.maximum is None:
            return
        if self.minimum is None or self.maximum is None:
            self.minimum, self.maximum = other.minimum, other.maximum
            self.mean, self._squares = other.mean, other._squares
            return
        self.minimum, self.maximum = min(self.minimum, other.minimum), max(self.maximum, other.maximum)
        distance, share = other.mean - self.mean, others / (finite + others)
        self.mean += distance * share
        self._squares += other._squares + distance * distance * finite * share


def _of_block(block: NDArray[Any], scratch: NDArray[np.float64]) -> ColumnStatistics:
    found = ColumnStatistics()
    found.count = block.size
    numbers = scratch[: block.size]
    np.copyto(numbers, block)
    if block.dtype.kind == "f" and not math.isfinite(numbers.sum()):
        block = block[np.isfinite(block)]
        numbers = block.astype(np.float64)
        found.not_finite = found.count - block.size
    if block.size:
        found.zeros = int(np.count_nonzero(block == 0))
        found.minimum, found.maximum = block.min().item(), block.max().item()
        found.mean = float(numbers.mean())
        numbers -= found.mean
        found._squares = float(numbers @ numbers)
    return found
