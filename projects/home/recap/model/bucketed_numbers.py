"""Separates the continuous features with buckets from the others, and encodes them."""

from collections.abc import Sequence

import torch
from torch import nn

from common.modules.piecewise_linear import PiecewiseLinear
from projects.home.recap.model.features import finite


class BucketedNumbers(nn.Module):
    """Encodes the continuous features that have buckets; the others stay as they are."""

    def __init__(self, edges: Sequence[Sequence[float] | None]) -> None:
        """Store the buckets.

        Args:
          edges: edges of the buckets of each continuous feature; None for one without buckets.
        """
        super().__init__()
        plain = [position for position, own in enumerate(edges) if own is None]
        bucketed = [position for position, own in enumerate(edges) if own is not None]
        self.num_plain = len(plain)
        self.register_buffer("_plain", torch.tensor(plain, dtype=torch.int64), persistent=False)
        self.register_buffer("_bucketed", torch.tensor(bucketed, dtype=torch.int64), persistent=False)
        self._plain: torch.Tensor
        self._bucketed: torch.Tensor
        self.encoding = PiecewiseLinear([own for own in edges if own is not None])
        self.out_features = self.encoding.out_features

    def forward(self, continuous: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the features without buckets, [batch, num_plain], and the encoding of the others.

        Args:
          continuous: float32 [batch, continuous]. NaN and infinities become 0.
        """
        numbers = finite(continuous.index_select(1, self._bucketed))
        return continuous.index_select(1, self._plain), self.encoding(numbers)
