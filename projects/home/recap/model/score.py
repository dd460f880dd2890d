"""The score that ranks candidates."""

from collections.abc import Mapping, Sequence

import torch
from torch import nn


class WeightedScore(nn.Module):
    """Computes the sum of weight * probability over tasks in float64: the expected value of showing a candidate."""

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

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the scores, float64 [batch], given the logits of the probabilities, [batch, tasks].

        In float32, candidates would have equal scores from a logit of 17, where probabilities round to 1.
        """
        return (torch.sigmoid(logits.double()) * self._weights).sum(dim=1)
