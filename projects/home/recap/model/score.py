"""One number by which candidates are ranked."""

from collections.abc import Mapping, Sequence

import torch
from torch import nn


class WeightedScore(nn.Module):
    """The sum of weight * probability over tasks: what showing a candidate is expected to be worth."""

    def __init__(self, tasks: Sequence[str], weights: Mapping[str, float]) -> None:
        """tasks: in the order of the probabilities' columns; weights: by task, those left out 0."""
        super().__init__()
        values = torch.tensor([weights.get(task, 0.0) for task in tasks])
        self.register_buffer("_weights", values, persistent=False)
        self._weights: torch.Tensor

    def forward(self, probabilities: torch.Tensor) -> torch.Tensor:
        """probabilities: float32 [batch, tasks]; returns float32 [batch]."""
        return (probabilities * self._weights).sum(dim=1)
