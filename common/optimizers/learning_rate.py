"""Computes and applies learning rates. They are pure functions of the step, so checkpoints contain no schedule."""

import bisect
import math
from collections.abc import Sequence
from typing import Protocol

import torch

from common.optimizers.config import LearningRate


def learning_rate_at(config: LearningRate, step: int) -> float:
    """Return the learning rate for the update of step `step`; steps count from 1."""
    if config.constant is not None:
        return config.constant
    if config.piecewise_constant is not None:
        piecewise = config.piecewise_constant
        # A boundary is the last step that uses its value.
        return piecewise.learning_rate_values[bisect.bisect_left(piecewise.learning_rate_boundaries, step)]
    if config.linear_ramp_to_constant is not None:
        ramp = config.linear_ramp_to_constant
        return ramp.learning_rate * min(1.0, step / ramp.num_ramp_steps)
    cosine = config.linear_ramp_to_cosine
    assert cosine is not None
    if step <= cosine.num_ramp_steps:
        return cosine.learning_rate * step / cosine.num_ramp_steps
    progress = min(1.0, (step - cosine.num_ramp_steps) / (cosine.final_num_steps - cosine.num_ramp_steps))
    weight = (1.0 + math.cos(math.pi * progress)) / 2.0
    return cosine.final_learning_rate + weight * (cosine.learning_rate - cosine.final_learning_rate)


class LearningRateSchedule(Protocol):
    """Learning rates for the parts of a model."""

    def apply(self, step: int) -> None:
        """Set the learning rates for the update of `step`."""

    def at(self, step: int) -> dict[str, float]:
        """Return the learning rate of each part at `step`, by the name of the part."""


class CombinedSchedule:
    """Combines the schedules of several optimizers into one. The names of their parts must differ."""

    def __init__(self, *schedules: LearningRateSchedule) -> None:
        self._schedules = schedules

    def apply(self, step: int) -> None:
        """Set the learning rates of all optimizers for the update of `step`."""
        for schedule in self._schedules:
            schedule.apply(step)

    def at(self, step: int) -> dict[str, float]:
        """Return the learning rate of each part of all schedules at `step`, by the name of the part."""
        return {name: rate for schedule in self._schedules for name, rate in schedule.at(step).items()}


class ParameterGroupScheduler:
    """Sets the learning rate of each parameter group of an optimizer."""

    def __init__(self, optimizer: torch.optim.Optimizer, configs: Sequence[LearningRate]) -> None:
        """Initialize without setting any rate.

        Args:
          optimizer: optimizer whose parameter groups each have a "name". If several groups have the same rate, they can
            name the part of the model that they belong to as their "part". The log uses it instead of the name.
          configs: learning rate of each parameter group, in order.
        """
        self._optimizer = optimizer  # don't keep its groups, because loading a state replaces them
        self._configs = list(configs)

    def apply(self, step: int) -> None:
        """Set the learning rates for the update of `step`."""
        for group, config in zip(self._optimizer.param_groups, self._configs, strict=True):
            group["lr"] = learning_rate_at(config, step)

    def at(self, step: int) -> dict[str, float]:
        """Return the learning rate of each part at `step`, by the name of the part."""
        groups = zip(self._optimizer.param_groups, self._configs, strict=True)
        return {group.get("part", group["name"]): learning_rate_at(config, step) for group, config in groups}
