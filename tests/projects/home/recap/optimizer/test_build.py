import pytest
import torch

from common.errors import ConfigError
from common.optimizers.config import LearningRate, LinearRampToConstant
from projects.home.recap.data.schema import FeatureWidths
from projects.home.recap.optimizer.build import build_optimizer
from projects.home.recap.optimizer.config import MultiTaskLearningRates, RecapAdamConfig, RecapOptimizerConfig
from tests.projects.home.recap.model.test_heavy_ranker import SHARE_NONE, SMALL_EMBEDDINGS, build

UNNORMED = "model.featurization_config.double_norm_log_config={}"


def test_each_part_has_its_learning_rate_and_every_parameter_is_in_one_group() -> None:
    ranker = build()
    towers = {task: LearningRate(constant=0.01 * (index + 1)) for index, task in enumerate(ranker.tasks)}
    backbone = LearningRate(linear_ramp_to_constant=LinearRampToConstant(learning_rate=1.0, num_ramp_steps=4))
    rates = MultiTaskLearningRates(tower_learning_rates=towers, backbone_learning_rate=backbone)
    config = RecapOptimizerConfig(
        multi_task_learning_rates=rates, adam=RecapAdamConfig(beta_1=0.8, beta_2=0.9, epsilon=1e-5)
    )
    optimizer, learning_rates = build_optimizer(ranker, config)
    learning_rates.apply(2)
    found = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    assert len(found) == sum(len(group["params"]) for group in optimizer.param_groups)
    for name, parameter in ranker.named_parameters():
        part = name.split(".")[1].replace("/", ".") if name.startswith("towers.") else "backbone"
        expected = 0.5 if part == "backbone" else towers[part].constant
        assert found[id(parameter)]["lr"] == pytest.approx(expected)
        assert (found[id(parameter)]["betas"], found[id(parameter)]["eps"]) == ((0.8, 0.9), 1e-5)
    assert learning_rates.at(4)["backbone"] == 1.0
    assert isinstance(optimizer, torch.optim.Adam)
    assert all(group["fused"] for group in optimizer.param_groups)


@pytest.mark.parametrize(
    ("overrides", "given", "message"),
    [
        ((), False, r"missing, .*the model has [\d,]+ parameters outside its towers"),
        (SHARE_NONE, False, r"missing, .*the model has 102 parameters outside its towers"),
        ((*SHARE_NONE, UNNORMED), True, "set, but the model has no parameters outside its towers. Set it to null"),
        ((*SHARE_NONE, UNNORMED), False, None),
        ((*SHARE_NONE, UNNORMED, SMALL_EMBEDDINGS), False, "missing, .*the model has 35 parameters outside its towers"),
        ((*SHARE_NONE, UNNORMED, SMALL_EMBEDDINGS), True, None),
    ],
)
def test_the_backbone_rate_is_required_exactly_if_parameters_are_outside_the_towers(
    overrides: tuple[str, ...], given: bool, message: str | None
) -> None:
    widths = FeatureWidths(6, 3, {} if UNNORMED in overrides else {"user_embedding": 36})
    ranker = build(widths=widths, overrides=overrides)
    rate = LearningRate(constant=0.1)
    rates = MultiTaskLearningRates(
        tower_learning_rates=dict.fromkeys(ranker.tasks, rate), backbone_learning_rate=rate if given else None
    )
    config = RecapOptimizerConfig(multi_task_learning_rates=rates, adam=RecapAdamConfig())
    if message is not None:
        with pytest.raises(
            ConfigError, match=f"^optimizer.multi_task_learning_rates.backbone_learning_rate is {message}"
        ):
            build_optimizer(ranker, config)
    else:
        optimizer, learning_rates = build_optimizer(ranker, config)
        assert list(learning_rates.at(1)) == ["backbone"] * given + list(ranker.tasks)
        found = sum(parameter.numel() for group in optimizer.param_groups for parameter in group["params"])
        assert found == sum(parameter.numel() for parameter in ranker.parameters())


def test_a_single_learning_rate_applies_to_all_parameters() -> None:
    ranker = build()
    config = RecapOptimizerConfig(single_task_learning_rate=LearningRate(constant=0.3), adam=RecapAdamConfig())
    optimizer, learning_rates = build_optimizer(ranker, config)
    learning_rates.apply(1)
    (group,) = optimizer.param_groups
    assert group["lr"] == 0.3
    assert len(group["params"]) == len(list(ranker.parameters()))
