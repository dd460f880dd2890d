"""Finds out whether early stopping has ended the run that a follower evaluates."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.tracking.measurement import Measurement
from common.tracking.metrics_file import MetricsTail
from core.config.training import EarlyStoppingConfig
from core.run.early_stopping import EarlyStopping


class StoppedRun:
    """Repeats the decisions of a trainer, from a checkpoint and the evaluations in the trainer's metrics file."""

    def __init__(self, config: EarlyStoppingConfig | None, metrics: Path) -> None:
        """Initialize without reading.

        Args:
          config: early stopping of the run; None if it never stops early.
          metrics: metrics file of the trainer.
        """
        self._config = config
        self._tail = MetricsTail(metrics)
        self._evaluations: list[Measurement] = []

    def stops_by(self, step: int, saved: Mapping[str, Any]) -> bool:
        """Return whether the run ends at `step` or earlier. Reads the new lines of the metrics file.

        Args:
          step: step of the newest checkpoint.
          saved: its state of early stopping.

        Raises:
          UserError: the file cannot be read, or is not a metrics file.
        """
        if self._config is None:
            return False
        measurements, is_another = self._tail.read()
        if is_another:
            self._evaluations.clear()
        self._evaluations += [m for m in measurements if m.partition == self._config.partition]
        early_stopping = EarlyStopping(self._config, saved)
        for measurement in self._evaluations:
            if measurement.step <= step:
                early_stopping.add(measurement)
        return early_stopping.is_over
