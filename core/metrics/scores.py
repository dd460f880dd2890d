"""Describes how negatives and positives are distributed over predictions, and computes the metrics that need this.

Does not define how the distribution is stored: in bins (histogram.py) or exactly (exact.py).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from core.metrics.cross_entropy import cross_entropy


@dataclass(frozen=True)
class ScoreDistribution:
    """Weights of the negatives and of the positives of one task at each predicted value.

    Attributes:
      predictions: predicted probabilities in ascending order, float64 [values].
      negatives: weight of the negatives at each prediction, float64 [values].
      positives: weight of the positives at each prediction, float64 [values].
    """

    predictions: torch.Tensor
    negatives: torch.Tensor
    positives: torch.Tensor

    def auroc(self) -> float | None:
        """Return the weighted share of correctly ordered positive-negative pairs, or None if there are no pairs.

        Ties count half.
        """
        pairs = float(self.negatives.sum() * self.positives.sum())
        if pairs == 0:
            return None
        below = self.negatives.cumsum(0) - self.negatives
        return float((self.positives * (below + self.negatives / 2)).sum()) / pairs

    def cross_entropy_change(self, factor: float) -> float:
        """Return how much the weighted sum of cross-entropies changes if all predictions are multiplied by `factor`.

        The products are clipped to probabilities. The unit is nats.
        """
        change = torch.zeros((), dtype=torch.float64)
        for label, weights in ((0.0, self.negatives), (1.0, self.positives)):
            before, after = (cross_entropy(p, label) for p in (self.predictions, factor * self.predictions))
            change += (weights * (after - before)).sum()
        return float(change)


class Scores(Protocol):
    """Keeps the distributions of several tasks, each over several groups of the examples."""

    def update(self, predictions: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> None:
        """Add a batch.

        Args:
          predictions: probabilities [batch, tasks].
          labels: 0 or 1, [batch, tasks].
          weights: weight of each example in each group, [batch, groups, tasks]; 0 if the group does not contain it.
        """

    def summands(self) -> torch.Tensor:
        """Return the values to sum over the ranks, float64 [n]; n is equal on all ranks."""

    def over_all_ranks(self, sums: torch.Tensor) -> Callable[[int, int], ScoreDistribution]:
        """Return a function from (group, task) to the distribution over all ranks, on the CPU. Collective.

        Args:
          sums: the summands of all ranks, added up, on the CPU.
        """
