import numpy as np
import pytest
import torch
from torch import nn

from common.errors import ConfigError
from common.optimizers.config import LearningRate, LinearRampToConstant
from projects.home.recap.data.schema import FeatureWidths
from projects.home.recap.model.heavy_ranker import HeavyRanker
from projects.home.recap.optimizer.build import build_optimizer
from projects.home.recap.optimizer.config import (
    MultiTaskLearningRates,
    RecapAdagradConfig,
    RecapAdamConfig,
    RecapAdamWConfig,
    RecapOptimizerConfig,
)
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


# --- AdamW and Adagrad ---

RATE = LearningRate(linear_ramp_to_constant=LinearRampToConstant(learning_rate=0.2, num_ramp_steps=2))


def multi_task_rates(ranker: HeavyRanker) -> MultiTaskLearningRates:
    """Return a rate for the backbone and another for each tower."""
    towers = {task: LearningRate(constant=0.01 * (index + 1)) for index, task in enumerate(ranker.tasks)}
    return MultiTaskLearningRates(tower_learning_rates=towers, backbone_learning_rate=RATE)


def decaying_names(ranker: HeavyRanker) -> set[str]:
    """Return the names of all weights of linear layers."""
    layers = [(name, module) for name, module in ranker.named_modules() if isinstance(module, nn.Linear)]
    return {f"{name}.weight" for name, _ in layers}


def test_adamw_decays_the_weights_of_linear_layers_only() -> None:
    ranker = build(overrides=[SMALL_EMBEDDINGS])
    config = RecapOptimizerConfig(
        multi_task_learning_rates=multi_task_rates(ranker), adamw=RecapAdamWConfig(weight_decay=0.3)
    )
    optimizer, learning_rates = build_optimizer(ranker, config)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    names = {name for name, parameter in ranker.named_parameters() if decay[id(parameter)] == 0.3}
    assert names == decaying_names(ranker)
    assert {decay[id(p)] for name, p in ranker.named_parameters() if name not in names} == {0.0}
    assert len(decay) == sum(len(group["params"]) for group in optimizer.param_groups)
    assert isinstance(optimizer, torch.optim.AdamW)
    assert all(group["fused"] for group in optimizer.param_groups)
    group_names = [group["name"] for group in optimizer.param_groups]
    assert group_names[:2] == ["backbone", "backbone/no_decay"]
    assert len(set(group_names)) == len(group_names) == 2 * (1 + len(ranker.tasks))
    assert list(learning_rates.at(1)) == ["backbone", *ranker.tasks], "one line of the log per part"


def test_adamw_has_no_empty_groups() -> None:
    ranker = build(overrides=[*SHARE_NONE, UNNORMED, SMALL_EMBEDDINGS], widths=FeatureWidths(6, 3, {}))
    config = RecapOptimizerConfig(multi_task_learning_rates=multi_task_rates(ranker), adamw=RecapAdamWConfig())
    optimizer, learning_rates = build_optimizer(ranker, config)
    assert [group["name"] for group in optimizer.param_groups][:3] == [
        "backbone/no_decay",  # the tables
        ranker.tasks[0],
        f"{ranker.tasks[0]}/no_decay",
    ]
    assert list(learning_rates.at(1)) == ["backbone", *ranker.tasks]


def test_adamw_with_a_single_learning_rate_has_two_groups() -> None:
    ranker = build()
    config = RecapOptimizerConfig(single_task_learning_rate=RATE, adamw=RecapAdamWConfig())
    optimizer, learning_rates = build_optimizer(ranker, config)
    assert [group["name"] for group in optimizer.param_groups] == ["model", "model/no_decay"]
    assert learning_rates.at(2) == {"model": 0.2}


def gradients(ranker: HeavyRanker, steps: int) -> list[list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(3)
    return [[torch.randn(p.shape, generator=generator) for p in ranker.parameters()] for _ in range(steps)]


def train(ranker: HeavyRanker, config: RecapOptimizerConfig, steps: list[list[torch.Tensor]]) -> None:
    optimizer, learning_rates = build_optimizer(ranker, config)
    for step, gradients in enumerate(steps, start=1):
        learning_rates.apply(step)
        for parameter, gradient in zip(ranker.parameters(), gradients, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()


def rate_of(name: str, step: int, ranker: HeavyRanker) -> float:
    if not name.startswith("towers."):
        return 0.2 * min(1.0, step / 2)
    return 0.01 * (1 + ranker.tasks.index(name.split(".")[1].replace("/", ".")))


def test_adamw_updates_equal_the_closed_form() -> None:
    """Compares with algorithm 2 of arXiv 1711.05101 in float64, whose schedule here multiplies the decay too."""
    ranker = build(overrides=[SMALL_EMBEDDINGS])
    steps = gradients(ranker, 3)
    expected = {name: p.detach().double().numpy().copy() for name, p in ranker.named_parameters()}
    decaying = decaying_names(ranker)
    for index, (name, theta) in enumerate(expected.items()):
        first, second = np.zeros_like(theta), np.zeros_like(theta)
        for step, each in enumerate(steps, start=1):
            gradient = each[index].double().numpy()
            first = 0.8 * first + 0.2 * gradient
            second = 0.9 * second + 0.1 * gradient**2
            rate = rate_of(name, step, ranker)
            update = first / (1 - 0.8**step) / (np.sqrt(second / (1 - 0.9**step)) + 1e-5)
            theta -= rate * update + (rate * 0.3 * theta if name in decaying else 0.0)
    config = RecapOptimizerConfig(
        multi_task_learning_rates=multi_task_rates(ranker),
        adamw=RecapAdamWConfig(beta_1=0.8, beta_2=0.9, epsilon=1e-5, weight_decay=0.3),
    )
    train(ranker, config, steps)
    for name, parameter in ranker.named_parameters():
        np.testing.assert_allclose(parameter.detach().numpy(), expected[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_adagrad_updates_equal_the_closed_form() -> None:
    ranker = build(overrides=[SMALL_EMBEDDINGS])
    steps = gradients(ranker, 3)
    expected = {name: p.detach().double().numpy().copy() for name, p in ranker.named_parameters()}
    for index, (name, theta) in enumerate(expected.items()):
        total = np.zeros_like(theta)
        for step, each in enumerate(steps, start=1):
            gradient = each[index].double().numpy()
            total += gradient**2
            theta -= rate_of(name, step, ranker) * gradient / (np.sqrt(total) + 0.01)
    config = RecapOptimizerConfig(
        multi_task_learning_rates=multi_task_rates(ranker), adagrad=RecapAdagradConfig(epsilon=0.01)
    )
    train(ranker, config, steps)
    for name, parameter in ranker.named_parameters():
        np.testing.assert_allclose(parameter.detach().numpy(), expected[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_adagrad_has_the_groups_of_adam() -> None:
    ranker = build()
    rates = multi_task_rates(ranker)
    adam, _ = build_optimizer(ranker, RecapOptimizerConfig(multi_task_learning_rates=rates, adam=RecapAdamConfig()))
    adagrad, _ = build_optimizer(
        ranker, RecapOptimizerConfig(multi_task_learning_rates=rates, adagrad=RecapAdagradConfig())
    )
    assert isinstance(adagrad, torch.optim.Adagrad)
    for one, other in zip(adagrad.param_groups, adam.param_groups, strict=True):
        assert one["name"] == other["name"]
        assert one["params"] == other["params"]
        assert one["fused"]
        assert one["weight_decay"] == 0


def test_no_more_than_one_optimizer_can_be_set() -> None:
    with pytest.raises(ValueError, match="exactly one of adam, adamw, adagrad must be set; currently set: adam, adamw"):
        RecapOptimizerConfig(single_task_learning_rate=RATE, adam=RecapAdamConfig(), adamw=RecapAdamWConfig())
