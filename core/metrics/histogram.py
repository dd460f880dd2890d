"""Keeps distributions of scores in constant memory, as histograms of the logits of the predictions."""

from collections.abc import Callable

import torch

from core.metrics.cross_entropy import EPSILON
from core.metrics.scores import ScoreDistribution

BINS = 2**15
# Covers the logit of EPSILON (-27.6), the lowest value, so there are no overflow bins.
LOGIT_RANGE = 28.0
BIN_WIDTH = 2 * LOGIT_RANGE / BINS


class LogitHistograms:
    """Counts scores in BINS bins of width BIN_WIDTH and treats each score as the prediction at the middle of its bin.

    Scores in one bin are tied; scores in different bins keep their order. The error of the AUROC is therefore at most
    half the weighted share of positive-negative pairs that fall into one bin. The error of a sum over examples is at
    most the sum of each term's change within its bin.

    Memory: 16 bytes per bin, task and group, or 0.5 MiB per task and group.
    """

    def __init__(self, groups: int, tasks: int, device: torch.device) -> None:
        self._shape = (2, groups, tasks, BINS)  # negatives, positives
        self._weights = torch.zeros(2 * groups * tasks * BINS, dtype=torch.float64, device=device)
        self._offsets = torch.arange(groups * tasks, device=device).view(groups, tasks) * BINS

    def update(self, predictions: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> None:
        logits = torch.logit(predictions.double(), eps=EPSILON)
        # The clamp puts NaN into a bin.
        bins = ((logits + LOGIT_RANGE) / BIN_WIDTH).long().clamp_(0, BINS - 1)
        index = (bins + labels.long() * (self._weights.numel() // 2))[:, None] + self._offsets
        self._weights.index_add_(0, index.flatten(), weights.double().flatten())

    def summands(self) -> torch.Tensor:
        return self._weights

    def over_all_ranks(self, sums: torch.Tensor) -> Callable[[int, int], ScoreDistribution]:
        negatives, positives = sums.view(self._shape)
        middles = (torch.arange(BINS, dtype=torch.float64) + 0.5) * BIN_WIDTH - LOGIT_RANGE
        predictions = torch.sigmoid(middles)

        def distribution(group: int, task: int) -> ScoreDistribution:
            of_negatives, of_positives = negatives[group, task], positives[group, task]
            filled = of_negatives + of_positives > 0
            return ScoreDistribution(predictions[filled], of_negatives[filled], of_positives[filled])

        return distribution
