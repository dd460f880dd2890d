import math

import pytest
import torch

from projects.home.recap.model.score import WeightedScore


def test_the_score_is_the_weighted_sum_of_the_probabilities_in_float64():
    logits = torch.tensor([[0.0, -1.0, 5.0], [17.0, -17.0, 2.0]])
    scores = WeightedScore(["a", "b", "c"], {"a": 2.0, "b": -300.0})(logits)
    assert scores.dtype == torch.float64
    expected = [2 / (1 + math.exp(-a)) - 300 / (1 + math.exp(-b)) for a, b, _ in logits.tolist()]
    assert scores.tolist() == pytest.approx(expected, rel=1e-15)


def test_confident_predictions_have_different_scores():
    """The first four probabilities are 1 in float32."""
    score = WeightedScore(["like", "report"], {"like": 0.5, "report": -369.0})
    logits = torch.tensor([[30.0, -40.0], [20.0, -40.0], [18.0, -40.0], [17.0, -40.0], [17.0, -20.0]])
    scores = score(logits).tolist()
    assert scores == sorted(set(scores), reverse=True)
