"""How negatives and positives are distributed over the predicted probabilities, and the metrics that need to know.

Who keeps the distribution, in bins (histogram.py) or exactly (exact.py), is left open here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from core.metrics.cross_entropy import cross_entropy


@dataclass(frozen=True)
class ScoreDistribution:
    """Of one task: the weight of its negatives and of its positives at each of some ascending predictions."""

    predictions: torch.Tensor
    """float64 [values], as the two below."""
    negatives: torch.Tensor
    positives: torch.Tensor

    def auroc(self) -> float | None:
        """The weighted share of pairs of a positive and a negative that are in order, ties half; None without pairs."""
        pairs = float(self.negatives.sum() * self.positives.sum())
        if pairs == 0:
            return None
        below = self.negatives.cumsum(0) - self.negatives
        return float((self.positives * (below + self.negatives / 2)).sum()) / pairs

    def cross_entropy_change(self, factor: float) -> float:
        """What multiplying all predictions by `factor` (then clipped to probabilities) adds to the weighted sum of
        cross-entropies, in nats."""
        change = torch.zeros((), dtype=torch.float64)
        for label, weights in ((0.0, self.negatives), (1.0, self.positives)):
            before, after = (cross_entropy(p, label) for p in (self.predictions, factor * self.predictions))
            change += (weights * (after - before)).sum()
        return float(change)


class Scores(Protocol):
    """Keeps the distributions of several tasks, each over several groups of the examples."""

    def update(self, predictions: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> None:
        """Adds a batch: probabilities and labels (0 or 1), [batch, tasks]; weights in each group, 0 where an example
        is not in it, [batch, groups, tasks]."""

    def summands(self) -> torch.Tensor:
        """What has to be summed over the ranks, float64 [n]; n is the same on all."""

    def over_all_ranks(self, sums: torch.Tensor) -> Callable[[int, int], ScoreDistribution]:
        """Collective. Takes the summands' sums, on the CPU; gives what tells the distribution of (group, task), on the
        CPU."""
