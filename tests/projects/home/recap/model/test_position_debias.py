"""PositionDebias alone and within the Heavy Ranker."""

import pytest
import torch

from common.errors import ConfigError
from projects.home.recap.data.schema import FeatureWidths
from projects.home.recap.model.config import PositionDebiasConfig
from projects.home.recap.model.position_debias import PositionDebias, check_position_index
from tests.projects.home.recap.model.test_heavy_ranker import build, discrete, inputs

DEBIASED = "model.position_debias_config={position_feature_index: 1, max_position: 5, num_dims: 3}"


def debias(drop_probability: float = 0.0) -> PositionDebias:
    torch.manual_seed(0)
    return PositionDebias(
        PositionDebiasConfig(position_feature_index=1, max_position=3, num_dims=2, drop_probability=drop_probability)
    )


def test_training_looks_up_positions_and_later_ones_share_the_last_embedding() -> None:
    module = debias()
    positions = torch.tensor([[9, 0], [9, 2], [9, 3], [9, 4], [9, 2**40], [9, -1]])
    outputs = module(positions, 6)
    weight = module.positions.weight
    assert weight.shape == (4, 2)
    expected = torch.stack([weight[0], weight[2], weight[3], weight[3], weight[3], torch.zeros(2)])
    assert torch.equal(outputs, expected)
    narrow = torch.tensor([[9, 2]], dtype=torch.uint8)
    assert torch.equal(module(narrow, 1), weight[2:3])


def test_positions_are_dropped_with_the_configured_probability() -> None:
    module = debias(0.3)
    outputs = module(torch.full((10_000, 2), 2), 10_000)
    kept = (outputs == module.positions.weight[2]).all(1)
    assert torch.equal(outputs[~kept], torch.zeros(int((~kept).sum()), 2))
    # Five standard deviations of the share.
    assert kept.float().mean().item() == pytest.approx(0.7, abs=5 * (0.3 * 0.7 / 10_000) ** 0.5)


def test_gradients_reach_only_positions_that_are_kept() -> None:
    module = debias()
    module(torch.tensor([[0, 1], [0, 3], [0, 8], [0, -4]]), 4).sum().backward()
    gradient = module.positions.weight.grad
    assert gradient is not None
    assert gradient.tolist() == [[0, 0], [1, 1], [0, 0], [2, 2]]


def test_evaluation_does_not_depend_on_the_position() -> None:
    ranker = build(overrides=[DEBIASED])
    outputs = ranker(*inputs(), discrete())["logits"]
    assert torch.equal(outputs, ranker(*inputs(), discrete() + 1)["logits"])
    assert torch.equal(outputs, ranker(*inputs())["logits"]), "a request has no position"


def test_training_depends_on_the_position() -> None:
    ranker = build(overrides=[DEBIASED]).train()
    logits = []
    for shift in (0, 0, 1):
        torch.manual_seed(0)
        logits.append(ranker(*inputs(), discrete() + shift)["logits"])
    assert torch.equal(logits[0], logits[1])
    assert not torch.equal(logits[0], logits[2])
    logits[0].sum().backward()
    assert ranker.position_debias is not None
    assert all(parameter.grad is not None for parameter in ranker.parameters())
    with pytest.raises(AssertionError, match="discrete is required in training"):
        ranker(*inputs())


def test_zeros_stand_for_a_dropped_position_in_both_modes() -> None:
    """Without batch norm and dropout, training on a dropped position and evaluation give the same logits."""
    plain = "model.tasks={a: {mlp_config: {layer_sizes: [4, 1]}}}"
    rest = ["model.score_weights=null", "train_data.tasks={a: {}}", "validation_data={}"]
    rest += ["optimizer={adam: {}, single_task_learning_rate: {constant: 0.1}}"]
    norm = "model.featurization_config={log1p_abs_config: {}}"
    ranker = build(overrides=[DEBIASED, plain, norm, *rest])
    dropped = torch.full((5, 2), -1)
    torch.testing.assert_close(ranker.train()(*inputs(), dropped)["logits"], ranker.eval()(*inputs())["logits"])


def test_bfloat16_autocast_trains_and_evaluates() -> None:
    ranker = build(overrides=[DEBIASED])
    with torch.autocast("cpu", torch.bfloat16):
        evaluated = ranker(*inputs(), discrete())["logits"]
        trained = ranker.train()(*inputs(), discrete())["logits"]
    assert evaluated.isfinite().all()
    assert trained.isfinite().all()


@pytest.mark.parametrize(("width", "found"), [(1, "1 discrete features"), (0, "no discrete features")])
def test_a_position_beyond_the_discrete_features_is_an_error(width: int, found: str) -> None:
    config = PositionDebiasConfig(position_feature_index=1)
    with pytest.raises(ConfigError, match=rf"position_feature_index is 1 .*train_data has {found}"):
        check_position_index(config, FeatureWidths(6, 4, {}, width), "train_data")
    check_position_index(config, FeatureWidths(6, 4, {}, 2), "train_data")
