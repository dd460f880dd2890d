"""Describes how negatives and positives are distributed over logits, and computes the metrics that need this.

Does not define how the distribution is stored: in bins (histogram.py) or exactly (exact.py).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from numpy.typing import NDArray

from core.metrics.cross_entropy import cross_entropy

# Probabilities that scaling would raise above 1 - EPSILON are clipped to it.
EPSILON = 1e-12


@dataclass(frozen=True)
class ScoreDistribution:
    """Weights of the negatives and of the positives of one task at each predicted value.

    Attributes:
      logits: logits of the predicted probabilities in ascending order, float64 [values].
      negatives: weight of the negatives at each logit, float64 [values].
      positives: weight of the positives at each logit, float64 [values].
    """

    logits: torch.Tensor
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

    def average_precision(self) -> float | None:
        """Return the area under the precision-recall curve, or None if there are no positives.

        This is the average precision: the weighted mean, over positives, of the precision among the predictions that
        are at least as high. Ties are predicted together.
        """
        positive = float(self.positives.sum())
        if positive == 0:
            return None
        positives, negatives = (part.flip(0).cumsum(0) for part in (self.positives, self.negatives))
        precisions = positives / (positives + negatives)
        return float((self.positives.flip(0) * precisions).sum()) / positive

    def cross_entropy_change(self, factor: float) -> float:
        """Return how much the weighted sum of cross-entropies changes if all probabilities are multiplied by `factor`.

        A product above 1 - EPSILON is clipped to it, or to the probability itself if that is larger. The unit is nats.
        """
        of_negatives, of_positives = cross_entropy(self.logits, 0.0), cross_entropy(self.logits, 1.0)
        complements = (1 - factor) + factor * torch.sigmoid(-self.logits)  # 1 - factor * p, precise for p close to 1
        negatives = torch.minimum(-complements.clamp_min(0).log(), of_negatives.clamp_min(-math.log(EPSILON)))
        positives = (of_positives - math.log(factor)).clamp_min(0)
        changes = self.negatives * (negatives - of_negatives) + self.positives * (positives - of_positives)
        return float(changes.sum())


class Scores(Protocol):
    """Keeps the distributions of several tasks, each over several subsets of the examples."""

    def update(self, logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> None:
        """Add a batch.

        Args:
          logits: logits of the predicted probabilities [batch, tasks].
          labels: 0 or 1, [batch, tasks].
          weights: weight of each example in each subset, [batch, subsets, tasks]; 0 if the subset does not contain it.
        """

    def state(self) -> dict[str, NDArray[Any]]:
        """Return what update() and add() have accumulated in this process, by names that no other metrics use."""

    def add(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Add what state() of another object of the same class has returned."""

    def summands(self) -> torch.Tensor:
        """Return the values to sum over the ranks, float64 [n]; n is equal on all ranks."""

    def over_all_ranks(self, sums: torch.Tensor) -> Callable[[int, int], ScoreDistribution]:
        """Return a function from (subset, task) to the distribution over all ranks, on the CPU. Collective.

        Args:
          sums: the summands of all ranks, added up, on the CPU.
        """
