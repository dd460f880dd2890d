"""The configuration of learning rates: which values are valid."""

import pydantic
import pytest

from common.optimizers.config import LearningRate, LinearRampToConstant, LinearRampToCosine, PiecewiseConstant


def staircase(boundaries: list[int], values: list[float]) -> PiecewiseConstant:
    return PiecewiseConstant(learning_rate_boundaries=boundaries, learning_rate_values=values)


def cosine(ramp: int, final: int) -> LinearRampToCosine:
    return LinearRampToCosine(learning_rate=1.0, final_learning_rate=0.1, num_ramp_steps=ramp, final_num_steps=final)


def test_there_must_be_one_more_value_than_boundaries():
    with pytest.raises(pydantic.ValidationError, match=r"2 learning_rate_boundaries need 3 .*but there are 2 "):
        staircase([1, 2], [0.1, 0.2])
    assert staircase([], [0.1]).learning_rate_values == [0.1]


@pytest.mark.parametrize("boundaries", [[2, 1], [2, 2]])
def test_boundaries_must_be_in_ascending_order(boundaries):
    with pytest.raises(pydantic.ValidationError, match=r"must be in ascending order, but are \[2, [12]\]"):
        staircase(boundaries, [0.1, 0.2, 0.3])


def test_a_cosine_must_end_after_its_ramp():
    with pytest.raises(
        pydantic.ValidationError, match=r"final_num_steps is 10, but must be greater than num_ramp_steps \(10\)"
    ):
        cosine(10, 10)
    assert cosine(10, 11).final_num_steps == 11


def test_rates_must_not_be_negative_and_steps_must_be_positive():
    for make in (
        lambda: LearningRate(constant=-0.1),
        lambda: LearningRate(constant=float("inf")),
        lambda: LearningRate(constant=1e39),  # too large for float32
        lambda: staircase([0], [0.1, 0.2]),
        lambda: staircase([1], [0.1, -0.2]),
        lambda: LinearRampToConstant(learning_rate=0.1, num_ramp_steps=0),
        lambda: cosine(0, 5),
    ):
        with pytest.raises(pydantic.ValidationError):
            make()
    assert LearningRate(constant=0.0).constant == 0.0


def test_exactly_one_schedule_must_be_set():
    with pytest.raises(pydantic.ValidationError, match="exactly one of constant"):
        LearningRate()
    with pytest.raises(pydantic.ValidationError, match="set: constant, piecewise_constant"):
        LearningRate(constant=0.1, piecewise_constant=staircase([], [0.1]))
