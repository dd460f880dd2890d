"""Keeps distributions of scores in constant memory, as histograms of the logits."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from core.metrics.scores import ScoreDistribution

# Bins of equal width from -LOGIT_RANGE to LOGIT_RANGE.
LOGIT_RANGE = 28.0
LINEAR_BINS = 2**15
BIN_WIDTH = 2 * LOGIT_RANGE / LINEAR_BINS

# Bins beyond, on each side, whose widths are proportional to the logit.
FARTHEST_LOGIT = 2.0**16
OUTER_BINS = 2**12
RELATIVE_WIDTH = math.log(FARTHEST_LOGIT / LOGIT_RANGE) / OUTER_BINS

BINS = LINEAR_BINS + 2 * OUTER_BINS


class LogitHistograms:
    """Counts scores in BINS bins and treats each score as the logit at the middle of its bin.

    Scores in one bin are tied; scores in different bins keep their order. The error of the AUROC is therefore at most
    half the weighted share of positive-negative pairs that fall into one bin. That of the area under the
    precision-recall curve is at most the mean, over positives, of how much the precision can vary within their bin. The
    error of a sum over examples is at most the sum of each term's change within its bin.

    Memory: 16 bytes per bin, task and subset, or 0.625 MiB per task and subset.
    """

    def __init__(self, subsets: int, tasks: int, device: torch.device) -> None:
        self._shape = (2, subsets, tasks, BINS)  # negatives, positives
        self._weights = torch.zeros(2 * subsets * tasks * BINS, dtype=torch.float64, device=device)
        self._offsets = torch.arange(subsets * tasks, device=device).view(subsets, tasks) * BINS

    def update(self, logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> None:
        # NaN needs a bin, too. Infinities become finite, and therefore integers.
        bins = (bin_positions(logits.double().nan_to_num(nan=0.0)) + BINS // 2).long().clamp_(0, BINS - 1)
        index = (bins + labels.long() * (self._weights.numel() // 2))[:, None] + self._offsets
        self._weights.index_add_(0, index.flatten(), weights.double().flatten())

    def state(self) -> dict[str, NDArray[Any]]:
        weights = self._weights.cpu().numpy()
        bins = np.flatnonzero(weights)
        return {"bins": bins, "weights": weights[bins]}

    def add(self, state: Mapping[str, NDArray[Any]]) -> None:
        bins, weights = (torch.from_numpy(state[name]).to(self._weights.device) for name in ("bins", "weights"))
        self._weights.index_add_(0, bins, weights)

    def summands(self) -> torch.Tensor:
        return self._weights

    def over_all_ranks(self, sums: torch.Tensor) -> Callable[[int, int], ScoreDistribution]:
        negatives, positives = sums.view(self._shape)
        middles = logits_at(torch.arange(BINS, dtype=torch.float64) + 0.5 - BINS // 2)

        def distribution(subset: int, task: int) -> ScoreDistribution:
            of_negatives, of_positives = negatives[subset, task], positives[subset, task]
            filled = of_negatives + of_positives > 0
            return ScoreDistribution(middles[filled], of_negatives[filled], of_positives[filled])

        return distribution


def bin_positions(logits: torch.Tensor) -> torch.Tensor:
    """Return the position of each logit on an axis on which all bins have width 1, and logit 0 is at 0."""
    sizes = logits.abs()
    positions = sizes.clamp_max(LOGIT_RANGE) / BIN_WIDTH
    positions += (sizes.clamp_min(LOGIT_RANGE) / LOGIT_RANGE).log_() / RELATIVE_WIDTH
    return positions.copysign_(logits)


def logits_at(positions: torch.Tensor) -> torch.Tensor:
    """Return the logit at each position: the inverse of bin_positions()."""
    sizes = positions.abs()
    logits = sizes.clamp_max(LINEAR_BINS // 2) * BIN_WIDTH
    logits *= ((sizes - LINEAR_BINS // 2).clamp_min_(0) * RELATIVE_WIDTH).exp_()
    return logits.copysign_(positions)
