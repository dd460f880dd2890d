"""Each optimizer updates as its definition says, at the rate of its schedule."""

import pytest
import torch

from common.optimizers.build import build_optimizer
from common.optimizers.config import OptimizerConfig

START = [1.0, -2.0, 3.0]
GRADIENTS = [[0.5, -1.0, 0.0], [0.25, 2.0, -1.0]]


def expected(kind: str, rate: float) -> torch.Tensor:
    """Return the parameter after two updates, from the definitions, in float64."""
    parameter = torch.tensor(START, dtype=torch.float64)
    first, second = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    for step, values in enumerate(GRADIENTS, start=1):
        gradient = torch.tensor(values, dtype=torch.float64)
        if kind == "sgd":  # momentum 0.9
            first = 0.9 * first + gradient
            parameter -= rate * first
        elif kind == "adagrad":
            second = second + gradient**2
            parameter -= rate * gradient / (second.sqrt() + 1e-10)
        else:  # Adam, arXiv 1412.6980, algorithm 1
            first = 0.8 * first + 0.2 * gradient
            second = 0.9 * second + 0.1 * gradient**2
            parameter -= rate * (first / (1 - 0.8**step)) / ((second / (1 - 0.9**step)).sqrt() + 1e-7)
    return parameter


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("sgd", {"sgd": {"lr": 0.1, "momentum": 0.9}}),
        ("adagrad", {"adagrad": {"lr": 0.1}}),
        ("adam", {"adam": {"lr": 0.1, "betas": [0.8, 0.9]}}),
        ("adam", {"adam": {"betas": [0.8, 0.9]}, "learning_rate": {"constant": 0.1}}),
    ],
)
def test_updates_follow_the_definitions(kind, config):
    parameter = torch.nn.Parameter(torch.tensor(START))
    optimizer, schedule = build_optimizer([parameter], OptimizerConfig.model_validate(config), "relations")
    for step, values in enumerate(GRADIENTS, start=1):
        schedule.apply(step)
        parameter.grad = torch.tensor(values)
        optimizer.step()
    torch.testing.assert_close(parameter.detach().double(), expected(kind, 0.1), rtol=1e-5, atol=1e-6)
    assert schedule.at(1) == {"relations": 0.1}


def test_a_group_may_have_no_parameters():
    optimizer, schedule = build_optimizer([], OptimizerConfig.model_validate({"sgd": {"lr": 0.5}}), "none")
    schedule.apply(1)
    optimizer.step()
    assert schedule.at(7) == {"none": 0.5}
