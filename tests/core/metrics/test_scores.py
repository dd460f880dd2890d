"""Metrics of a ScoreDistribution, computed by hand."""

import math

import pytest
import torch

from core.metrics.scores import ScoreDistribution


def distribution(probabilities: list[float], negatives: list[float], positives: list[float]) -> ScoreDistribution:
    p, *weights = (torch.tensor(values, dtype=torch.float64) for values in (probabilities, negatives, positives))
    return ScoreDistribution(p.logit(), *weights)


def test_auroc_is_the_share_of_ordered_pairs_plus_half_of_the_ties():
    scores = distribution([0.1, 0.4, 0.8], [3.0, 1.0, 2.0], [0.0, 4.0, 1.0])
    in_order, ties, pairs = 4 * 3 + 1 * 4, 4 * 1 + 1 * 2, 6 * 5
    assert scores.auroc() == pytest.approx((in_order + ties / 2) / pairs, rel=1e-15)


@pytest.mark.parametrize("weights", [([1.0], [0.0]), ([0.0], [2.0])])
def test_auroc_is_undefined_without_pairs(weights):
    assert distribution([0.5], *weights).auroc() is None


def test_average_precision_is_the_mean_precision_at_the_positives():
    scores = distribution([0.1, 0.4, 0.8], [3.0, 1.0, 2.0], [0.0, 4.0, 1.0])
    assert scores.average_precision() == pytest.approx((1 * 1 / 3 + 4 * 5 / 8) / 5, rel=1e-15)


def test_average_precision_needs_positives_only():
    assert distribution([0.5], [1.0], [0.0]).average_precision() is None
    assert distribution([0.5], [0.0], [2.0]).average_precision() == 1.0


def test_the_cross_entropy_change_equals_the_closed_form():
    scores = distribution([0.1, 0.4], [3.0, 1.0], [2.0, 5.0])
    of_positives = -7 * math.log(2)
    of_negatives = -3 * math.log(0.8 / 0.9) - math.log(0.2 / 0.6)
    assert scores.cross_entropy_change(2.0) == pytest.approx(of_positives + of_negatives, rel=1e-12)
    assert scores.cross_entropy_change(1.0) == pytest.approx(0.0, abs=1e-14)


def test_a_product_above_1_is_clipped():
    scores = distribution([0.6], [1.0], [1.0])
    expected = -math.log(1e-12) + math.log(0.4) + math.log(0.6)
    assert scores.cross_entropy_change(2.0) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("logit", [30.0, 60.0, 800.0, math.inf])
@pytest.mark.parametrize("factor", [1.0, 1 + 1e-15, 1.5])
def test_clipping_improves_no_prediction(logit, factor):
    """A probability above 1 - 1e-12 stays as it is, instead of being clipped to a smaller one."""
    weights = torch.ones(1, dtype=torch.float64)
    scores = ScoreDistribution(torch.tensor([logit], dtype=torch.float64), weights, 0 * weights)
    assert scores.cross_entropy_change(factor) == pytest.approx(0.0, abs=1e-12 * min(logit, 1e300))


def test_a_confident_prediction_that_is_scaled_down_is_cheaper():
    weights = torch.ones(1, dtype=torch.float64)
    scores = ScoreDistribution(torch.tensor([60.0], dtype=torch.float64), weights, weights)
    expected = (-math.log(0.1) - 60) + -math.log(0.9)
    assert scores.cross_entropy_change(0.9) == pytest.approx(expected, rel=1e-12)
