"""The score that ranks candidates."""

from collections.abc import Mapping, Sequence

import torch
from torch import nn


class WeightedScore(nn.Module):
    """Computes the sum of weight * probability over tasks: the expected value of showing a candidate."""

    def __init__(self, tasks: Sequence[str], weights: Mapping[str, float]) -> None:
        """Store the weights.

        Args:
          tasks: names of the tasks, in the order of the probabilities' columns.
          weights: weight by task; a missing task has weight 0.
        """
        super().__init__()
        values = torch.tensor([weights.get(task, 0.0) for task in tasks])
        self.register_buffer("_weights", values, persistent=False)
        self._weights: torch.Tensor

    def forward(self, probabilities: torch.Tensor) -> torch.Tensor:
        """Return the scores, float32 [batch], given probabilities, float32 [batch, tasks]."""
        return (probabilities * self._weights).sum(dim=1)
