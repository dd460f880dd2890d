"""The sinks of a run, as the container that the loop logs to.

A sink that fails is one warning and never stops the run. What is measured, and when, is the loop's business; the sinks
are in `common.metrics_file` and `common.wandb`.
"""

import functools
import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from common.measurement import Measurement, Tracker
from common.metrics_file import MetricsFile, read_metrics
from common.wandb import WandbConfig, WandbTracker
from core.config.base_config import UserError

logger = logging.getLogger(__name__)


class Trackers:
    """The sinks of a run. Only rank 0 has any; without sinks all methods do nothing.

    No exception of a sink leaves this class. Neither KeyboardInterrupt nor SystemExit is held back.
    """

    def __init__(self, sinks: Iterable[Tracker] = ()) -> None:
        named = [(type(sink).__name__, sink) for sink in sinks]
        self._logging = list(named)
        self._unfinished = list(named)
        self.run_id: str | None = None
        """The id that a tracking service knows this run by; belongs into the checkpoint."""

    def add(self, name: str, build: Callable[[], Tracker]) -> None:
        """Adds the sink that `build` returns, called `name` in warnings; without it if building fails.

        Raises UserError where `build` does: a mistake that the user is told before training starts.
        """
        try:
            sink = build()
        except UserError:
            raise
        except Exception as error:
            _warn(name, "could not be set up; going on without it", error)
            return
        self._logging.append((name, sink))
        self._unfinished.append((name, sink))
        self.run_id = getattr(sink, "run_id", self.run_id)

    def log(self, measurement: Measurement) -> None:
        """Hands the measurement to each sink; one that fails is switched off with a warning."""
        for name, sink in list(self._logging):
            try:
                sink.log(measurement)
            except Exception as error:
                self._logging.remove((name, sink))
                _warn(name, f"failed at step {measurement.step} and is switched off", error)

    def finish(self) -> None:
        """Finishes each sink, also one that is switched off. A second call does nothing."""
        self._logging.clear()
        while self._unfinished:
            name, sink = self._unfinished.pop()
            try:
                sink.finish()
            except Exception as error:
                _warn(name, "failed to finish", error)


def _warn(name: str, what_happened: str, error: Exception) -> None:
    logger.warning("Tracker %s %s: %s: %s", name, what_happened, type(error).__name__, error)


def build_trackers(
    run_dir: Path,
    config: WandbConfig | None,
    resolved_config: Mapping[str, Any],
    last_step: int | None,
    *,
    run_id: str | None = None,
) -> Trackers:
    """The sinks of a run, for rank 0: `run_dir`/metrics.jsonl, and W&B if configured.

    resolved_config: what W&B shows as the run's config; JSON values.
    last_step: the step that the run goes on from, 0 for a new run; None keeps all lines of the metrics file.
    run_id: the one in the checkpoint.

    A sink that can't be set up is one warning. Raises UserError if the metrics file is damaged or the key
    file can't serve.
    """
    trackers = Trackers()
    metrics = run_dir / "metrics.jsonl"
    trackers.add("metrics file", functools.partial(MetricsFile, metrics, last_step))
    if config is not None:
        backlog = read_metrics(metrics)
        trackers.add(
            "Weights & Biases",
            functools.partial(WandbTracker, config, run_dir, resolved_config, run_id=run_id, backlog=backlog),
        )
    return trackers
