import torch

from projects.home.recap.model.score import WeightedScore


def test_the_score_is_the_sum_of_weight_times_probability() -> None:
    score = WeightedScore(("like", "report", "view"), {"report": -369.0, "like": 0.5})
    probabilities = torch.tensor([[0.5, 0.0, 1.0], [0.25, 0.125, 0.5]])
    assert score(probabilities).tolist() == [0.25, 0.125 - 46.125]


def test_the_score_stays_float32_under_autocast() -> None:
    score = WeightedScore(("a", "b"), {"a": 1.0, "b": 1e-4})
    with torch.autocast("cpu", torch.bfloat16):
        outputs = score(torch.tensor([[0.5, 0.5]]))
    assert outputs.dtype == torch.float32
    assert abs(outputs.item() - 0.50005) < 1e-7, "bfloat16 has no number between 0.5 and 0.502"


def test_weights_are_not_in_checkpoints() -> None:
    assert WeightedScore(("a",), {"a": 1.0}).state_dict() == {}
