"""Which steps are best by a metric, as the files of measurements say."""

import math
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Literal

from common.errors import ConfigError
from common.tracking.metrics_file import MetricsTail
from core.config.training import CheckpointKeepBestConfig
from core.run.directory import FollowerDirectory, RunDirectory


class BestSteps:
    """The steps with the best values of one metric. The files are the truth, so that it outlives restarts; each of
    their lines is read once."""

    def __init__(
        self, files: Sequence[Path], partition: str, metric: str, mode: Literal["max", "min"], top_k: int
    ) -> None:
        """Args:
        files: of measurements; where several have a step, the first counts.
        partition: on which the metric is measured.
        metric: its name.
        mode: whether large values are good, or small ones.
        top_k: how many steps.
        """
        self._files: list[tuple[MetricsTail, dict[int, float]]] = [(MetricsTail(path), {}) for path in files]
        self._partition = partition
        self._metric = metric
        self._sign = 1 if mode == "max" else -1
        self._top_k = top_k

    def __call__(self, steps: Collection[int]) -> set[int]:
        """The best of some steps; of equal ones, the later. One without a finite value is not among them.

        Raises:
          UserError: a file can't be read, or is none of measurements.
        """
        joined: dict[int, float] = {}
        for file, values in reversed(self._files):
            measurements, is_another = file.read()
            if is_another:
                values.clear()
            for measured in measurements:
                if measured.mode == "evaluate" and measured.partition == self._partition:
                    value = measured.metrics.get(self._metric)
                    values[measured.step] = math.nan if value is None else value
            joined |= values
        measured_steps = [step for step in steps if math.isfinite(joined.get(step, math.nan))]
        ranked = sorted(measured_steps, key=lambda step: (self._sign * joined[step], step))
        return set(ranked[-self._top_k :])


def best_checkpoints(
    config: CheckpointKeepBestConfig | None,
    save_dir: str,
    partitions: Collection[str],
    metric_names: Callable[[str], Collection[str]],
) -> BestSteps | None:
    """Return what ranks the checkpoints of a run by the measurements of the run and its follower.

    Args:
      config: None if no checkpoint is kept for its metrics.
      save_dir: directory of the run.
      partitions: names of the evaluation sets.
      metric_names: returns the names of a partition's metrics.

    Raises:
      ConfigError: there is no such partition, or it has no such metric.
    """
    if config is None:
        return None
    place = "training.checkpoint_keep_best"
    if config.partition not in partitions:
        raise ConfigError(
            f"{place}.partition: {config.partition!r} given; evaluated are: {', '.join(partitions) or 'none'}"
        )
    if config.metric not in (names := metric_names(config.partition)):
        raise ConfigError(
            f"{place}.metric: {config.metric!r} given; evaluations of {config.partition} have: {', '.join(names)}"
        )
    files = [RunDirectory(save_dir).metrics, FollowerDirectory(save_dir).metrics]
    return BestSteps(files, config.partition, config.metric, config.mode, config.top_k)
