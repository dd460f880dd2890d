"""Sums over groups, against closed forms and brute force over all orders of ties."""

import itertools

import numpy as np
import pytest
import torch

from core.metrics.within_groups import (
    AUC,
    BOTH_CLASSES,
    COVERED_WEIGHT,
    NDCG,
    RECIPROCAL_RANK,
    WITH_POSITIVES,
    sums_within_groups,
)


def sums(
    logits: list[float],
    labels: list[int],
    *,
    groups: list[int] | None = None,
    weights: list[float] | None = None,
    ndcg_at: tuple[int, ...] = (),
) -> list[float]:
    """Return the sums over groups; without `groups`, all rows are in one."""
    x, y, w = (torch.tensor(column, dtype=torch.float64) for column in (logits, labels, weights or [1.0] * len(labels)))
    found: list[float] = sums_within_groups(torch.tensor(groups or [0] * len(labels)), x, y, w, ndcg_at).tolist()
    return found


def test_an_auc_weights_its_pairs_and_counts_ties_half() -> None:
    found = sums([1.0, 2.0, 2.0, 3.0], [0, 1, 0, 1], weights=[3.0, 2.0, 5.0, 7.0])
    auc = (2 * (3 + 5 / 2) + 7 * (3 + 5)) / (9 * 8)
    assert found[AUC] == pytest.approx(17 * auc, rel=1e-15)
    assert found[COVERED_WEIGHT] == 17
    assert found[BOTH_CLASSES] == found[WITH_POSITIVES] == 1


def test_groups_of_one_class_have_no_auc_and_groups_without_positives_are_not_ranked() -> None:
    found = sums([1.0, 2.0, 3.0, 4.0, 5.0], [1, 1, 0, 0, 1], groups=[0, 0, 1, 1, 2])
    assert found == [0, 0, 0, 2, 2]


def test_rows_of_weight_0_are_absent() -> None:
    found = sums([1.0, 9.0, 2.0, 3.0], [1, 0, 0, 1], weights=[1.0, 0.0, 1.0, 0.0], ndcg_at=(2,))
    assert found == sums([1.0, 2.0], [1, 0], ndcg_at=(2,))
    assert found[RECIPROCAL_RANK] == 1 / 2
    assert found[NDCG] == pytest.approx(1 / np.log2(3), rel=1e-15)


def test_without_rows_all_sums_are_0() -> None:
    assert sums([], [], groups=[], ndcg_at=(1, 2)) == [0] * (NDCG + 2)


@pytest.mark.parametrize("labels", list(itertools.product([0, 1], repeat=5))[1:])
def test_rankings_are_averages_over_all_orders_of_ties(labels: tuple[int, ...]) -> None:
    logits = [3.0, 1.0, 1.0, 1.0, -np.inf]
    found = sums(logits, list(labels), ndcg_at=(1, 2, 3, 4, 9))
    discounts = 1 / np.log2(np.arange(2, 7))
    reciprocal_ranks, ndcgs = [], []
    for order in itertools.permutations(range(5)):
        if all(logits[a] >= logits[b] for a, b in itertools.pairwise(order)):
            ordered = np.array(labels)[list(order)]
            reciprocal_ranks.append(1 / (1 + ordered.argmax()))
            best = np.sort(labels)[::-1]
            ndcgs.append([(ordered * discounts)[:k].sum() / (best * discounts)[:k].sum() for k in (1, 2, 3, 4, 9)])
    assert len(reciprocal_ranks) == 6
    assert found[RECIPROCAL_RANK] == pytest.approx(np.mean(reciprocal_ranks), rel=1e-14)
    assert found[NDCG:] == pytest.approx(np.mean(ndcgs, axis=0), rel=1e-14)


def test_a_group_does_not_depend_on_others() -> None:
    """Weights differ by 16 orders of magnitude, which sums over all groups would round away."""
    small = sums([1.0, 2.0, 0.0], [0, 1, 1], weights=[1e-8, 2e-8, 3e-8])
    both = sums(
        [5.0, 6.0, 1.0, 2.0, 0.0], [0, 1, 0, 1, 1], groups=[0, 0, 1, 1, 1], weights=[1e8, 1e8, 1e-8, 2e-8, 3e-8]
    )
    assert small[AUC] / small[COVERED_WEIGHT] == pytest.approx(2 / 5, rel=1e-12)
    assert both[RECIPROCAL_RANK] == 2.0
    assert both[AUC] == 2e8 + small[AUC]


def test_groups_of_all_sizes_are_ranked() -> None:
    """The last row of each group is its only positive, and has the highest logit."""
    sizes = [*range(1, 70), 5000]
    groups = np.repeat(np.arange(len(sizes)), sizes).tolist()
    labels = [int(row == size - 1) for size in sizes for row in range(size)]
    logits = [float(row) for size in sizes for row in range(size)]
    found = sums(logits, labels, groups=groups, ndcg_at=(1,))
    assert found == [sum(sizes) - 1, sum(sizes) - 1, len(sizes) - 1, len(sizes), len(sizes), len(sizes)]
    worst = sums([-logit for logit in logits], labels, groups=groups)
    assert worst[AUC] == 0
    assert worst[RECIPROCAL_RANK] == pytest.approx(sum(1 / size for size in sizes), rel=1e-14)
