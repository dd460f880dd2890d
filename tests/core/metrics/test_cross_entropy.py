"""Cross-entropy and relative cross-entropy against scikit-learn and closed forms."""

import math

import pytest
import torch
from sklearn.metrics import log_loss

from core.metrics.cross_entropy import cross_entropy, entropy, relative_cross_entropy


def test_the_cross_entropy_equals_that_of_sklearn():
    p = torch.tensor([0.1, 0.5, 0.9, 1e-9], dtype=torch.float64)
    y = torch.tensor([0.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    assert float(cross_entropy(p.logit(), y).mean()) == pytest.approx(log_loss(y, p), rel=1e-12)


@pytest.mark.parametrize("logit", [0.0, 1.0, 17.0, 37.0, 60.0, 1000.0])
def test_the_cross_entropy_is_precise_and_symmetric_for_any_logit(logit):
    high, low = (torch.tensor([sign * logit], dtype=torch.float64) for sign in (1, -1))
    rest = math.log1p(math.exp(-logit))
    assert cross_entropy(high, 0.0).item() == cross_entropy(low, 1.0).item() == pytest.approx(logit + rest, rel=1e-15)
    assert cross_entropy(high, 1.0).item() == cross_entropy(low, 0.0).item() == pytest.approx(rest, rel=1e-15, abs=0)


def test_an_infinite_logit_has_a_finite_cross_entropy():
    logits = torch.tensor([-math.inf, math.inf], dtype=torch.float64)
    largest = torch.finfo(torch.float32).max
    assert cross_entropy(logits, 1.0).tolist() == [largest, 0.0]
    assert cross_entropy(logits, 0.0).tolist() == [0.0, largest]


def test_labels_can_be_probabilities():
    p, y = torch.tensor([0.2], dtype=torch.float64), torch.tensor([0.7], dtype=torch.float64)
    expected = -(0.7 * math.log(0.2) + 0.3 * math.log(0.8))
    assert float(cross_entropy(p.logit(), y)) == pytest.approx(expected, rel=1e-12)


def test_the_entropy_equals_the_closed_form():
    p = torch.tensor([0.0, 0.2, 0.5, 1.0], dtype=torch.float64)
    expected = [0.0, -(0.2 * math.log(0.2) + 0.8 * math.log(0.8)), math.log(2), 0.0]
    assert entropy(p).tolist() == pytest.approx(expected, rel=1e-12)


def test_the_base_rate_has_rce_0_and_half_of_its_cross_entropy_has_rce_50():
    entropy = -(math.log(0.25) + 3 * math.log(0.75))
    assert relative_cross_entropy(entropy, 4.0, 1.0) == pytest.approx(0.0, abs=1e-12)
    assert relative_cross_entropy(entropy / 2, 4.0, 1.0) == pytest.approx(50.0, rel=1e-12)


@pytest.mark.parametrize(("weight", "positive"), [(4.0, 0.0), (4.0, 4.0), (0.0, 0.0)])
def test_the_rce_is_undefined_if_one_class_has_no_examples(weight, positive):
    assert relative_cross_entropy(1.0, weight, positive) is None
