"""Warns of learning rate schedules that do not fit the length of a run."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from common.optimizers.config import LearningRate
from core.config.base_config import BaseConfig
from core.run.identity import capped_list

logger = logging.getLogger(__name__)


def warn_of_cut_schedules(config: BaseConfig, last_step: int) -> None:
    """Log a warning that lists the learning rates of a configuration that still change after the run's last step."""
    ends = [f"{key_path} is {end}" for key_path, end in _schedule_ends(config, "") if end > last_step]
    if ends:
        logger.warning(
            "the run ends after step %d, before these learning rate schedules do:\n  %s\nTo change that, adapt the "
            "schedules or the length of the run",
            last_step,
            capped_list(ends, limit=3),
        )


def _schedule_ends(value: Any, key_path: str) -> Iterator[tuple[str, int]]:
    """Yield the key path and the value of each key below `key_path` that says when a learning rate becomes constant."""
    if isinstance(value, LearningRate):
        if (ramp := value.linear_ramp_to_constant) is not None:
            yield f"{key_path}.linear_ramp_to_constant.num_ramp_steps", ramp.num_ramp_steps
        if (cosine := value.linear_ramp_to_cosine) is not None:
            yield f"{key_path}.linear_ramp_to_cosine.final_num_steps", cosine.final_num_steps
        if (steps := value.piecewise_constant) is not None and steps.learning_rate_boundaries:
            boundaries = steps.learning_rate_boundaries
            yield f"{key_path}.piecewise_constant.learning_rate_boundaries[{len(boundaries) - 1}]", boundaries[-1]
    elif isinstance(value, BaseConfig | Mapping):
        for key, each in value.items() if isinstance(value, Mapping) else value:
            name = f"[{key}]" if "." in str(key) else f".{key}"
            yield from _schedule_ends(each, f"{key_path}{name}".removeprefix("."))
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for index, each in enumerate(value):
            yield from _schedule_ends(each, f"{key_path}[{index}]")
