"""Learning rates: pure functions of the step, so that no schedule needs saving."""

import bisect
import math
from collections.abc import Sequence
from typing import Protocol

import torch

from common.optimizers.config import LearningRate


def learning_rate_at(config: LearningRate, step: int) -> float:
    """The learning rate of the update that makes step `step` (the first is 1)."""
    if config.constant is not None:
        return config.constant
    if config.piecewise_constant is not None:
        piecewise = config.piecewise_constant
        # A boundary is the last step of its value.
        return piecewise.learning_rate_values[bisect.bisect_left(piecewise.learning_rate_boundaries, step)]
    if config.linear_ramp_to_constant is not None:
        ramp = config.linear_ramp_to_constant
        return ramp.learning_rate * min(1.0, step / ramp.num_ramp_steps)
    cosine = config.linear_ramp_to_cosine
    assert cosine is not None
    if step <= cosine.num_ramp_steps:
        return cosine.learning_rate * step / cosine.num_ramp_steps
    done = min(1.0, (step - cosine.num_ramp_steps) / (cosine.final_num_steps - cosine.num_ramp_steps))
    weight = (1.0 + math.cos(math.pi * done)) / 2.0
    return cosine.final_learning_rate + weight * (cosine.learning_rate - cosine.final_learning_rate)


class LearningRateSchedule(Protocol):
    """Learning rates of a model's parts."""

    def apply(self, step: int) -> None:
        """Sets the learning rates of the update that makes `step`."""

    def at(self, step: int) -> dict[str, float]:
        """The learning rate of each part at `step`, by its name."""


class JoinedSchedules:
    """LearningRateSchedule of several optimizers."""

    def __init__(self, *rates: LearningRateSchedule) -> None:
        self._rates = rates

    def apply(self, step: int) -> None:
        """As LearningRateSchedule."""
        for rates in self._rates:
            rates.apply(step)

    def at(self, step: int) -> dict[str, float]:
        """As LearningRateSchedule; the names differ."""
        return {name: rate for rates in self._rates for name, rate in rates.at(step).items()}


class ParameterGroupScheduler:
    """The learning rate of each of an optimizer's parameter groups."""

    def __init__(self, optimizer: torch.optim.Optimizer, configs: Sequence[LearningRate]) -> None:
        """configs: one per parameter group, in their order; a group's "name" is its name in the log."""
        self._optimizer = optimizer  # not its groups: loading a state replaces them
        self._configs = list(configs)

    def apply(self, step: int) -> None:
        """Sets the learning rates of the update that makes `step`."""
        for group, config in zip(self._optimizer.param_groups, self._configs, strict=True):
            group["lr"] = learning_rate_at(config, step)

    def at(self, step: int) -> dict[str, float]:
        """The learning rate of each group at `step`, by the group's name."""
        groups = zip(self._optimizer.param_groups, self._configs, strict=True)
        return {group["name"]: learning_rate_at(config, step) for group, config in groups}
