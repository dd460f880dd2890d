"""Computes metrics of rankings within groups, such as the examples of a user.

Does not define where the rows of a group come from: grouped_rows.py brings them to one rank.

Groups of similar sizes are measured together, as the rows of a matrix whose width is the next power of two. So nothing
loops over groups, and the value of a group does not depend on the rounding errors of others.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import torch

# Elements of a matrix. A larger group has a matrix of its own.
_ELEMENTS = 2**18

# Sums over groups. The entries after them hold the sum of NDCG@k for each k.
AUC, COVERED_WEIGHT, BOTH_CLASSES, WITH_POSITIVES, RECIPROCAL_RANK, NDCG = range(6)


def sums_within_groups(
    groups: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor, ndcg_at: Sequence[int]
) -> torch.Tensor:
    """Return sums over groups, all of whose rows are here.

    The weighted sum of the groups' AUCs, the weight and the number of groups with both classes, the number of groups
    with positives, and over these the sums of the reciprocal rank and of each NDCG.

    Args:
      groups: number of the group of each row, int64 [rows], in ascending order.
      logits: float64 [rows]; not NaN.
      labels: 0 or 1, float64 [rows].
      weights: float64 [rows]. Rows of weight 0 count as absent.
      ndcg_at: values of k of the NDCGs.

    Returns:
      float64 [NDCG + len(ndcg_at)].
    """
    sums = torch.zeros(NDCG + len(ndcg_at), dtype=torch.float64)
    present = weights > 0
    groups, logits, labels, weights = (values[present] for values in (groups, logits, labels, weights))
    by_logit = torch.argsort(logits, descending=True, stable=True)
    order = by_logit[torch.argsort(groups[by_logit], stable=True)]
    logits, labels, weights = logits[order], labels[order], weights[order]
    _, sizes = torch.unique_consecutive(groups, return_counts=True)
    for rows, is_row in _matrices(sizes):
        ranking = _Rankings.of(logits[rows], labels[rows] * is_row, weights[rows] * is_row, is_row)
        with_positives = ranking.labels.sum(1) > 0
        auc = ranking.auc()
        both = ~auc.isnan()
        group_weights = ranking.weights.sum(1)[both]
        sums[AUC] += (group_weights * auc[both]).sum()
        sums[COVERED_WEIGHT] += group_weights.sum()
        sums[BOTH_CLASSES] += both.sum()
        sums[WITH_POSITIVES] += with_positives.sum()
        sums[RECIPROCAL_RANK] += ranking.reciprocal_rank()[with_positives].sum()
        for index, k in enumerate(ndcg_at, NDCG):
            sums[index] += ranking.ndcg(k)[with_positives].sum()
    return sums


def _matrices(sizes: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield the rows of groups of similar sizes: their positions, and which elements are not padding.

    Args:
      sizes: number of rows of each group, int64 [groups].

    Yields:
      Positions, int64 [groups, width], and bool [groups, width]. Padding is on the right.
    """
    starts = sizes.cumsum(0) - sizes
    width = 1
    while (rest := sizes > width // 2).any():
        chosen = (rest & (sizes <= width)).nonzero().flatten()
        columns = torch.arange(width)
        for part in torch.split(chosen, max(1, _ELEMENTS // width)):
            is_row = columns < sizes[part, None]
            yield (starts[part, None] + columns) * is_row, is_row
        width *= 2


@dataclass(frozen=True)
class _Rankings:
    """Groups of similar sizes, each [groups, width], best logit first. Padding on the right has label and weight 0.

    A run is the rows of a group with equal logits. Averages over its orders are exact (McSherry and Najork 2008,
    "Computing Information Retrieval Performance Measures Efficiently in the Presence of Tied Scores").

    Attributes:
      labels: 0 or 1.
      weights: weights of the rows.
      starts: number of rows before the run of each row.
      ends: number of rows up to the end of the run of each row.
    """

    labels: torch.Tensor
    weights: torch.Tensor
    starts: torch.Tensor
    ends: torch.Tensor

    @classmethod
    def of(cls, logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor, is_row: torch.Tensor) -> Self:
        width = logits.shape[1]
        columns = torch.arange(width).expand_as(logits)
        is_first = torch.ones_like(is_row)
        is_first[:, 1:] = (logits[:, 1:] != logits[:, :-1]) | ~is_row[:, 1:]
        starts = (columns * is_first).cummax(1).values
        is_last = torch.ones_like(is_row)
        is_last[:, :-1] = is_first[:, 1:]
        ends = (columns + 1).where(is_last, width).flip(1).cummin(1).values.flip(1)
        return cls(labels, weights, starts, ends)

    def auc(self) -> torch.Tensor:
        """Return the weighted share of correctly ordered positive-negative pairs, [groups]; NaN without pairs.

        Ties count half.
        """
        positives, negatives = self.weights * self.labels, self.weights * (1 - self.labels)
        before = _sums_before(negatives)
        above = (before.gather(1, self.starts) + before.gather(1, self.ends)) / 2
        below = negatives.sum(1, keepdim=True) - above
        pairs = positives.sum(1) * negatives.sum(1)
        return (positives * below).sum(1) / pairs

    def ndcg(self, k: int) -> torch.Tensor:
        """Return the NDCG of the first k ranks, averaged over the orders of ties, [groups]; NaN without positives."""
        ranks = torch.arange(1, self.labels.shape[1] + 1, dtype=torch.float64)
        discounts = (ranks + 1).log2().reciprocal() * (ranks <= k)
        before = _sums_before(discounts[None])[0]
        discount = (before[self.ends] - before[self.starts]) / (self.ends - self.starts)
        ideal = before[self.labels.sum(1).long()]
        return (self.labels * discount).sum(1) / ideal

    def reciprocal_rank(self) -> torch.Tensor:
        """Return 1 / rank of the first positive, averaged over the orders of ties, [groups]."""
        first = self.labels.argmax(1, keepdim=True)
        start, end = self.starts.gather(1, first), self.ends.gather(1, first)
        before = _sums_before(self.labels)
        positives = before.gather(1, end) - before.gather(1, start)
        # Of the run's rows in random order, `remaining` are left at `place`, and it has the first positive if all rows
        # at places before it are negatives.
        places = torch.arange(self.labels.shape[1], dtype=torch.float64)
        remaining = (end - start - places).clamp_min(1)
        is_positive = (positives / remaining).clamp_max(1)
        only_negatives = torch.ones_like(self.labels)
        only_negatives[:, 1:] = (1 - is_positive).cumprod(1)[:, :-1]
        return (only_negatives * is_positive / (start + places + 1)).sum(1)


def _sums_before(values: torch.Tensor) -> torch.Tensor:
    """Return the sums of the first 0, 1, ... values of each row, [rows, width + 1]."""
    sums = values.new_zeros(values.shape[0], values.shape[1] + 1)
    torch.cumsum(values, 1, out=sums[:, 1:])
    return sums
