import pytest
import torch

from common.optimizers.config import LearningRate, LinearRampToConstant
from projects.home.recap.optimizer import (
    MultiTaskLearningRates,
    RecapAdamConfig,
    RecapOptimizerConfig,
    build_optimizer,
)
from tests.projects.home.recap.model.test_heavy_ranker import build


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


def test_a_single_learning_rate_is_for_all() -> None:
    ranker = build()
    config = RecapOptimizerConfig(single_task_learning_rate=LearningRate(constant=0.3), adam=RecapAdamConfig())
    optimizer, learning_rates = build_optimizer(ranker, config)
    learning_rates.apply(1)
    (group,) = optimizer.param_groups
    assert group["lr"] == 0.3
    assert len(group["params"]) == len(list(ranker.parameters()))
