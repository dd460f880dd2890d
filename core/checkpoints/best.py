"""Ranks the checkpoints of a run by a metric, as configured by training.checkpoint_keep_best."""

import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Literal

from common.tracking.metrics_file import MetricsTail


class BestSteps:
    """Finds the steps with the best values of one metric.

    Takes the values only from the metrics files, so it survives restarts. Reads each of their lines once.
    """

    def __init__(
        self, files: Sequence[Path], partition: str, metric: str, mode: Literal["max", "min"], top_k: int
    ) -> None:
        """Initialize.

        Args:
          files: metrics files. If several files have a step, the first one counts.
          partition: partition that the metric is measured on.
          metric: name of the metric.
          mode: "max" if higher values are better, "min" if lower values are.
          top_k: number of steps to find.
        """
        self._files: list[tuple[MetricsTail, dict[int, float]]] = [(MetricsTail(path), {}) for path in files]
        self._partition = partition
        self._metric = metric
        self._sign = 1 if mode == "max" else -1
        self._top_k = top_k

    def __call__(self, steps: Collection[int]) -> set[int]:
        """Return the best of the given steps; see values()."""
        return set(self.values(steps))

    def values(self, steps: Collection[int]) -> dict[int, float]:
        """Return the values of the best of the given steps.

        The later of two equal steps ranks higher. A step without a finite value is never returned. An evaluation that
        the time limit has cut short does not count.

        Raises:
          UserError: a file cannot be read, or is not a metrics file.
        """
        joined: dict[int, float] = {}
        for file, values in reversed(self._files):
            measurements, is_another = file.read()
            if is_another:
                values.clear()
            for measurement in measurements:
                if measurement.mode == "evaluate" and measurement.partition == self._partition:
                    if measurement.timing.get("timed_out"):
                        continue
                    value = measurement.metrics.get(self._metric)
                    values[measurement.step] = math.nan if value is None else value
            joined |= values
        measured_steps = [step for step in steps if math.isfinite(joined.get(step, math.nan))]
        ranked = sorted(measured_steps, key=lambda step: (self._sign * joined[step], step))
        return {step: joined[step] for step in ranked[-self._top_k :]}
