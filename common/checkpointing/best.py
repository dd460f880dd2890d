"""Which steps are best by a metric, as the files of measurements say."""

import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Literal

from common.metrics_file import MetricsTail


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

    def of(self, steps: Collection[int]) -> set[int]:
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
