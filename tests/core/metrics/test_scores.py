"""Metrics of a ScoreDistribution, computed by hand."""

import math

import pytest
import torch

from core.metrics.scores import ScoreDistribution


def distribution(predictions: list[float], negatives: list[float], positives: list[float]) -> ScoreDistribution:
    return ScoreDistribution(
        *(torch.tensor(values, dtype=torch.float64) for values in (predictions, negatives, positives))
    )


def test_auroc_is_the_share_of_ordered_pairs_plus_half_of_the_ties():
    scores = distribution([0.1, 0.4, 0.8], [3.0, 1.0, 2.0], [0.0, 4.0, 1.0])
    in_order, ties, pairs = 4 * 3 + 1 * 4, 4 * 1 + 1 * 2, 6 * 5
    assert scores.auroc() == pytest.approx((in_order + ties / 2) / pairs, rel=1e-15)


@pytest.mark.parametrize("weights", [([1.0], [0.0]), ([0.0], [2.0])])
def test_auroc_is_undefined_without_pairs(weights):
    assert distribution([0.5], *weights).auroc() is None


def test_the_cross_entropy_change_equals_the_closed_form():
    scores = distribution([0.1, 0.4], [3.0, 1.0], [2.0, 5.0])
    of_positives = -7 * math.log(2)
    of_negatives = -3 * math.log(0.8 / 0.9) - math.log(0.2 / 0.6)
    assert scores.cross_entropy_change(2.0) == pytest.approx(of_positives + of_negatives, rel=1e-12)
    assert scores.cross_entropy_change(1.0) == 0.0


def test_a_product_above_1_is_clipped():
    scores = distribution([0.6], [1.0], [1.0])
    expected = -math.log(1e-12) + math.log(0.4) - math.log(1 - 1e-12) + math.log(0.6)
    assert scores.cross_entropy_change(2.0) == pytest.approx(expected, rel=1e-4)
