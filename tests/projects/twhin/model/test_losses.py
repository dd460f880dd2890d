import math

import numpy as np
import pytest
import torch

from projects.twhin.model.losses import Loss, edge_losses
from tests.support.toy_twhin import LOSSES, loss_of_edge


@pytest.mark.parametrize("loss", LOSSES)
def test_equals_the_closed_form(loss: Loss):
    positives, negatives = torch.randn(6, dtype=torch.float64), torch.randn(6, 4, dtype=torch.float64)
    masked = torch.rand(6, 4) < 0.5
    masked[0], masked[1] = True, False
    expected = [
        loss_of_edge(loss, 0.3, positive, [s for s, out in zip(row, outs, strict=True) if not out])
        for positive, row, outs in zip(positives.tolist(), negatives.tolist(), masked.tolist(), strict=True)
    ]
    np.testing.assert_allclose(edge_losses(loss, 0.3, positives, negatives, masked), expected, rtol=1e-12)


def test_without_negatives_only_the_positive_term_remains():
    positives, none = torch.tensor([0.5, -2.0]), torch.empty(2, 0)
    expected = {"logistic": [math.log1p(math.exp(-0.5)), math.log1p(math.exp(2.0))]}
    for loss in LOSSES:
        losses = edge_losses(loss, 0.3, positives, none, none.bool())
        torch.testing.assert_close(losses, torch.tensor(expected.get(loss, [0.0, 0.0])))


@pytest.mark.parametrize("loss", LOSSES)
def test_large_scores_in_bfloat16_equal_the_closed_form(loss: Loss):
    positives, negatives = torch.tensor([-300.0, 300.0]), torch.tensor([[200.0, 250.0], [-200.0, 250.0]])
    losses = edge_losses(loss, 0.5, positives.bfloat16(), negatives.bfloat16(), torch.zeros(2, 2, dtype=torch.bool))
    expected = {"logistic": [525.0, 125.0], "softmax": [550.0, 0.0], "margin": [525.5, 0.0]}[loss]
    torch.testing.assert_close(losses, torch.tensor(expected), rtol=1e-4, atol=1e-4)
