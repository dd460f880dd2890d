"""Learning rates by hand, and the schedulers that apply them."""

import copy
import math

import pytest
import torch

from common.optimizers.config import LearningRate, LinearRampToConstant, LinearRampToCosine, PiecewiseConstant
from common.optimizers.learning_rate import CombinedSchedule, ParameterGroupScheduler, learning_rate_at

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
def test_a_constant_rate_is_equal_at_every_step(step):
    assert learning_rate_at(LearningRate(constant=0.25), step) == 0.25


def test_a_piecewise_constant_rate_changes_after_its_boundaries():
    assert [learning_rate_at(STAIRCASE, step) for step in range(1, 8)] == [0.3, 0.3, 0.3, 0.2, 0.2, 0.1, 0.1]


def test_a_ramp_starts_at_the_first_step_and_ends_at_its_last():
    assert [learning_rate_at(RAMP, step) for step in range(1, 7)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8, 0.8])


def test_a_ramp_to_cosine_equals_the_closed_form():
    """The rate k steps after the ramp is 0.2 + 0.6 * (1 + cos(pi * k / 6)) / 2, with cosines known from geometry."""
    cosines = [math.sqrt(3) / 2, 0.5, 0.0, -0.5, -math.sqrt(3) / 2, -1.0]
    expected = [0.2, 0.4, 0.6, 0.8] + [0.5 + 0.3 * c for c in cosines] + [0.2, 0.2]
    actual = [learning_rate_at(COSINE, step) for step in [*range(1, 12), 10**6]]
    assert actual == pytest.approx(expected, rel=1e-12)
    assert actual[-1] == pytest.approx(0.2, rel=1e-15)


def test_a_cosine_can_rise():
    rising = LearningRate(
        linear_ramp_to_cosine=LinearRampToCosine(
            learning_rate=0.0, final_learning_rate=0.4, num_ramp_steps=1, final_num_steps=3
        )
    )
    assert [learning_rate_at(rising, step) for step in (1, 2, 3)] == pytest.approx([0.0, 0.2, 0.4])


def optimizer(*names: str) -> torch.optim.Optimizer:
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "name": name} for name in names]
    return torch.optim.SGD(groups, lr=99.0)


def test_each_group_has_its_rate_even_after_loading_a_state():
    tested = optimizer("backbone", "tower")
    rates = ParameterGroupScheduler(tested, [RAMP, STAIRCASE])
    tested.load_state_dict(copy.deepcopy(tested.state_dict()))
    rates.apply(2)
    assert [group["lr"] for group in tested.param_groups] == [0.4, 0.3]
    assert rates.at(2) == {"backbone": 0.4, "tower": 0.3}
    assert rates.at(6) == {"backbone": 0.8, "tower": 0.1}
    assert [group["lr"] for group in tested.param_groups] == [0.4, 0.3], "at() changes nothing"


def test_a_combined_schedule_sets_the_rates_of_all_optimizers():
    first, second = optimizer("backbone"), optimizer("tower")
    combined = CombinedSchedule(ParameterGroupScheduler(first, [RAMP]), ParameterGroupScheduler(second, [STAIRCASE]))
    combined.apply(2)
    assert [group["lr"] for each in (first, second) for group in each.param_groups] == [0.4, 0.3]
    assert combined.at(6) == {"backbone": 0.8, "tower": 0.1}


def test_a_missing_rate_is_an_error():
    with pytest.raises(ValueError, match="shorter"):
        ParameterGroupScheduler(optimizer("backbone", "tower"), [RAMP]).apply(1)
