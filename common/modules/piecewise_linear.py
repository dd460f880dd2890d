"""Implements the piecewise-linear encoding of numbers."""

from collections.abc import Sequence

import torch
from torch import nn

# A number outside all buckets extends the first or the last one linearly. The limit, in widths of that bucket, prevents
# one extreme number from exceeding all other features.
_LIMIT = 10.0


class PiecewiseLinear(nn.Module):
    """Encodes each number as the filled share of each of its buckets (arXiv 2203.05556, equation 1).

    The bucket from b to c becomes 0 for x < b, 1 for x >= c, and (x - b) / (c - b) in between. As in the paper, the
    first bucket extends below its lower edge and the last one above its upper edge, here up to 10 of their widths.
    """

    def __init__(self, edges: Sequence[Sequence[float]]) -> None:
        """Store the buckets.

        Args:
          edges: edges of the buckets of each number, ascending and distinct in float32, at least two per number.
        """
        super().__init__()
        self.out_features = sum(len(own) - 1 for own in edges)
        of_number = [number for number, own in enumerate(edges) for _ in own[1:]]
        lower = torch.tensor([edge for own in edges for edge in own[:-1]])
        upper = torch.tensor([edge for own in edges for edge in own[1:]])
        lowest = torch.tensor([0.0 if index else -_LIMIT for own in edges for index in range(len(own) - 1)])
        highest = torch.tensor([1.0 if index else _LIMIT for own in edges for index in reversed(range(len(own) - 1))])
        for name, values in {
            "_of_number": torch.tensor(of_number, dtype=torch.int64),
            "_lower": lower,
            "_width": upper - lower,
            "_lowest": lowest,
            "_highest": highest,
        }.items():
            self.register_buffer(name, values, persistent=False)
        self._of_number: torch.Tensor
        self._lower: torch.Tensor
        self._width: torch.Tensor
        self._lowest: torch.Tensor
        self._highest: torch.Tensor

    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        """Return the encoding, float32 [batch, out_features], given finite float32 numbers [batch, len(edges)]."""
        # A division, because the inverse of a tiny width would be infinite.
        shares = (numbers.index_select(1, self._of_number) - self._lower) / self._width
        return torch.minimum(torch.maximum(shares, self._lowest), self._highest)
