"""Decides from a run's evaluations when to stop training, as configured by training.early_stopping."""

import dataclasses
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from common.tracking.measurement import Measurement
from core.config.training import EarlyStoppingConfig


@dataclasses.dataclass(frozen=True)
class BestEvaluation:
    """The best evaluation of a run.

    Attributes:
      step: the step that was evaluated.
      partition: partition that the metric is measured on.
      metric: name of the metric.
      value: the value that no later evaluation improved on.
      checkpoint: its checkpoint; None if it no longer exists.
    """

    step: int
    partition: str
    metric: str
    value: float
    checkpoint: Path | None

    def __str__(self) -> str:
        where = "its checkpoint does not exist" if self.checkpoint is None else self.checkpoint
        return f"step {self.step}, {self.metric} on {self.partition} {self.value:.6g} ({where})"


class EarlyStopping:
    """Counts consecutive evaluations that did not improve on the best value.

    The state of checkpoint N lacks the evaluation of step N, which comes after the save. A resume adds it from
    metrics.jsonl, or evaluates again if the run was killed before. An evaluation counts once, however often it is
    added, so a run that is killed at any moment makes the same decisions. Without a configuration, nothing counts.
    """

    def __init__(self, config: EarlyStoppingConfig | None, saved: Mapping[str, Any]) -> None:
        """Initialize.

        Args:
          config: what to compare and how long to wait for an improvement; None never stops.
          saved: the state() in a checkpoint; {} for a fresh run. It is ignored if it is about another metric.
        """
        self._config = config
        self._best: float | None = None
        self._best_step: int | None = None
        self._misses = 0
        self._last_step = 0
        self.notice = ""
        """Message for the user if the saved state is ignored."""
        if config is None or not saved:
            return
        if saved["measure"] != self._measure:
            before, now = (", ".join(measure.values()) for measure in (saved["measure"], self._measure))
            self.notice = f"early stopping begins to count again: it compared {before} before, and {now} now"
            return
        self._best, self._best_step = saved["best"], saved["best_step"]
        self._misses, self._last_step = saved["misses"], saved["last_step"]

    def add(self, measurement: Measurement) -> None:
        """Count an evaluation, unless it was counted before, or has another partition.

        A value that is missing or not finite is never an improvement. An evaluation that the time limit has cut short
        does not count at all.
        """
        config = self._config
        if config is None or measurement.mode != "evaluate" or measurement.partition != config.partition:
            return
        if measurement.step <= self._last_step or measurement.timing.get("timed_out"):
            return
        self._last_step = measurement.step
        value = measurement.metrics.get(config.metric)
        if value is not None and math.isfinite(value) and self._improves(value):
            self._best, self._best_step, self._misses = value, measurement.step, 0
        else:
            self._misses += 1

    @property
    def is_over(self) -> bool:
        """True if the run has waited long enough for an improvement."""
        return self._config is not None and self._misses >= self._config.patience

    @property
    def reason(self) -> str:
        """Clauses for a message: why the run stops, and what the user can raise to continue."""
        assert self._config is not None
        return (
            f"{self._config.metric} on {self._config.partition} has not improved in the last {self._misses} "
            f"evaluation(s); raise training.early_stopping.patience above {self._misses}"
        )

    def best_steps(self) -> list[int]:
        """Return the step of the best evaluation so far, if there is one. Any thread may call this."""
        return [self._best_step] if self._best_step is not None else []

    def best(self, checkpoints: Collection[Path]) -> BestEvaluation | None:
        """Return the best evaluation so far, or None if there is none.

        Args:
          checkpoints: the existing checkpoints of the run.
        """
        config = self._config
        if config is None or self._best is None or self._best_step is None:
            return None
        checkpoint = next((path for path in checkpoints if path.name == str(self._best_step)), None)
        return BestEvaluation(self._best_step, config.partition, config.metric, self._best, checkpoint)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint holds, as JSON values; {} without a configuration."""
        if self._config is None:
            return {}
        return {
            "measure": self._measure,
            "best": self._best,
            "best_step": self._best_step,
            "misses": self._misses,
            "last_step": self._last_step,
        }

    @property
    def _measure(self) -> dict[str, str]:
        assert self._config is not None
        return {"partition": self._config.partition, "metric": self._config.metric, "mode": self._config.mode}

    @property
    def _sign(self) -> int:
        """1 if higher values are better, -1 if lower values are."""
        assert self._config is not None
        return 1 if self._config.mode == "max" else -1

    def _improves(self, value: float) -> bool:
        assert self._config is not None
        best = -math.inf if self._best is None else self._sign * self._best
        return self._sign * value - best > self._config.min_delta
