"""Cross-entropy and relative cross-entropy against scikit-learn and closed forms."""

import math

import pytest
import torch
from sklearn.metrics import log_loss

from core.metrics.cross_entropy import cross_entropy, relative_cross_entropy


def test_the_cross_entropy_equals_that_of_sklearn():
    p = torch.tensor([0.1, 0.5, 0.9, 1e-9], dtype=torch.float64)
    y = torch.tensor([0.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    assert float(cross_entropy(p, y).mean()) == pytest.approx(log_loss(y, p), rel=1e-12)


def test_the_cross_entropy_is_finite_for_predictions_of_0_and_1():
    p = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert cross_entropy(p, 1.0).tolist() == pytest.approx([-math.log(1e-12), 0.0], abs=1e-11)
    assert cross_entropy(p, 0.0).tolist() == pytest.approx([0.0, -math.log(1e-12)], rel=1e-4, abs=1e-11)


def test_labels_can_be_probabilities():
    p, y = torch.tensor([0.2], dtype=torch.float64), torch.tensor([0.7], dtype=torch.float64)
    assert float(cross_entropy(p, y)) == pytest.approx(-(0.7 * math.log(0.2) + 0.3 * math.log(0.8)), rel=1e-12)


def test_the_base_rate_has_rce_0_and_half_of_its_cross_entropy_has_rce_50():
    entropy = -(math.log(0.25) + 3 * math.log(0.75))
    assert relative_cross_entropy(entropy, 4.0, 1.0) == pytest.approx(0.0, abs=1e-12)
    assert relative_cross_entropy(entropy / 2, 4.0, 1.0) == pytest.approx(50.0, rel=1e-12)


@pytest.mark.parametrize(("weight", "positive"), [(4.0, 0.0), (4.0, 4.0), (0.0, 0.0)])
def test_the_rce_is_undefined_if_one_class_has_no_examples(weight, positive):
    assert relative_cross_entropy(1.0, weight, positive) is None
