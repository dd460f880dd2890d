import copy
import math

import pytest
import torch

from common.optimizers.config import LearningRate, LinearRampToConstant, LinearRampToCosine, PiecewiseConstant
from common.optimizers.learning_rate import ParameterGroupScheduler, learning_rate_at

STAIRCASE = LearningRate(
    piecewise_constant=PiecewiseConstant(learning_rate_boundaries=[3, 5], learning_rate_values=[0.3, 0.2, 0.1])
)
RAMP = LearningRate(linear_ramp_to_constant=LinearRampToConstant(learning_rate=0.8, num_ramp_steps=4))
COSINE = LearningRate(
    linear_ramp_to_cosine=LinearRampToCosine(
        learning_rate=0.8, final_learning_rate=0.2, num_ramp_steps=4, final_num_steps=10
    )
)


@pytest.mark.parametrize("step", [1, 2, 10**9])
def test_constant(step):
    assert learning_rate_at(LearningRate(constant=0.25), step) == 0.25


def test_piecewise_constant_changes_after_its_boundaries():
    assert [learning_rate_at(STAIRCASE, step) for step in range(1, 8)] == [0.3, 0.3, 0.3, 0.2, 0.2, 0.1, 0.1]


def test_ramp_to_constant_moves_from_the_first_step_and_arrives_at_its_last():
    assert [learning_rate_at(RAMP, step) for step in range(1, 7)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8, 0.8])


def test_ramp_to_cosine():
    """0.2 + 0.6 * (1 + cos(pi * k / 6)) / 2, k steps after the ramp: cosines known by geometry."""
    cosines = [math.sqrt(3) / 2, 0.5, 0.0, -0.5, -math.sqrt(3) / 2, -1.0]
    expected = [0.2, 0.4, 0.6, 0.8] + [0.5 + 0.3 * c for c in cosines] + [0.2, 0.2]
    found = [learning_rate_at(COSINE, step) for step in [*range(1, 12), 10**6]]
    assert found == pytest.approx(expected, rel=1e-12)
    assert found[-1] == pytest.approx(0.2, rel=1e-15)


def test_a_cosine_may_rise():
    rising = LearningRate(
        linear_ramp_to_cosine=LinearRampToCosine(
            learning_rate=0.0, final_learning_rate=0.4, num_ramp_steps=1, final_num_steps=3
        )
    )
    assert [learning_rate_at(rising, step) for step in (1, 2, 3)] == pytest.approx([0.0, 0.2, 0.4])


def optimizer() -> torch.optim.Optimizer:
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "name": name} for name in ("backbone", "tower")]
    return torch.optim.SGD(groups, lr=99.0)


def test_each_group_has_its_rate_even_after_a_state_was_loaded():
    tested = optimizer()
    rates = ParameterGroupScheduler(tested, [RAMP, STAIRCASE])
    tested.load_state_dict(copy.deepcopy(tested.state_dict()))
    rates.apply(2)
    assert [group["lr"] for group in tested.param_groups] == [0.4, 0.3]
    assert rates.at(2) == {"backbone": 0.4, "tower": 0.3}
    assert rates.at(6) == {"backbone": 0.8, "tower": 0.1}
    assert [group["lr"] for group in tested.param_groups] == [0.4, 0.3], "at() only looks"


def test_a_rate_too_few_is_noticed():
    with pytest.raises(ValueError, match="shorter"):
        ParameterGroupScheduler(optimizer(), [RAMP]).apply(1)
