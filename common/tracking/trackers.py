"""The trackers of a run, as the container that the loop logs to.

The metrics file is written at once, all others in threads of their own. A sink that fails is one warning and neither
stops nor slows the run. What is measured, and when, is the loop's business.
"""

import functools
import logging
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.tracking.background import BackgroundTracker
from common.tracking.measurement import Measurement, Tracker
from common.tracking.metrics_file import read_metrics
from common.tracking.metrics_file_tracker import MetricsFileTracker
from common.tracking.wandb import WandbTracker
from common.wandb import WandbConfig

logger = logging.getLogger(__name__)

# How long a sink may take to be built before training begins without it, in seconds.
_BUILD_PATIENCE_IN_S = 30.0

# How long the end of a run waits for all trackers together; torchrun gives a job that it stops 30 s.
_FINISH_PATIENCE_IN_S = 20.0


class Trackers:
    """The trackers of a run. Only rank 0 has any; without trackers all methods do nothing.

    No exception of a sink leaves this class.
    """

    def __init__(self) -> None:
        self._metrics_file: MetricsFileTracker | None = None
        self._background: list[BackgroundTracker] = []
        self.run_id: str | None = None
        """The id that a tracking service knows this run by; belongs into the checkpoint."""
        self.run_has_failed = False
        """Whether an exception was on its way at finish()."""

    def add_metrics_file(self, path: Path, last_step: int | None) -> None:
        """Adds the file; arguments and UserError of MetricsFileTracker."""
        try:
            self._metrics_file = MetricsFileTracker(path, last_step)
        except OSError as error:
            logger.warning("%s can't be written: %s; going on without it", path, error.strerror)

    def add_wandb(self, build: Callable[[], WandbTracker]) -> None:
        """Adds W&B, which is reached beside the training.

        build: prepares it; called at once. Raises UserError where it does.
        """
        try:
            tracker = build()
        except UserError:
            raise
        except Exception as error:
            logger.warning("W&B could not be set up; going on without it: %s: %s", type(error).__name__, error)
            return
        self.run_id = tracker.run_id
        self._background.append(BackgroundTracker("Weights & Biases", tracker.started, abandon=tracker.abandon))

    def add(self, name: str, build: Callable[[], Tracker]) -> None:
        """Adds the sink that `build` returns, called `name` in warnings. All its calls are made in one thread.

        Raises UserError where `build` does: a mistake that the user is told before training starts.
        """
        self._background.append(BackgroundTracker(name, build, patience_in_s=_BUILD_PATIENCE_IN_S))

    def log(self, measurement: Measurement) -> None:
        """Hands the measurement to each sink."""
        if self._metrics_file is not None:
            self._metrics_file.log(measurement)
        for tracker in self._background:
            tracker.log(measurement)

    def sync(self) -> None:
        """Makes durable what a resume needs of what was logged. Any thread may call it."""
        if self._metrics_file is not None:
            self._metrics_file.sync()

    def finish(self) -> None:
        """Finishes each sink, in bounded time; at once where an interrupt ends the run. A second call does nothing."""
        error = sys.exception()
        self.run_has_failed = error is not None
        if self._metrics_file is not None:
            self._metrics_file.finish()
            self._metrics_file = None
        background, self._background = self._background, []
        deadline = time.monotonic() + (0.0 if isinstance(error, KeyboardInterrupt) else _FINISH_PATIENCE_IN_S)
        for tracker in background:
            tracker.begin_finish()
        for tracker in background:
            tracker.finish(deadline)


def build_trackers(
    run_dir: Path,
    config: WandbConfig | None,
    resolved_config: Mapping[str, Any],
    last_step: int | None,
    *,
    run_id: str | None = None,
) -> Trackers:
    """The trackers of a run, for rank 0: `run_dir`/metrics.jsonl, and W&B if configured.

    resolved_config: what W&B shows as the run's config; JSON values.
    last_step: the step that the run goes on from, 0 for a new run; None keeps all lines of the metrics file.
    run_id: the one in the checkpoint.

    A sink that can't be set up is one warning. Raises UserError if the metrics file is damaged or the key
    file can't serve.
    """
    trackers = Trackers()
    metrics = run_dir / "metrics.jsonl"
    trackers.add_metrics_file(metrics, last_step)
    if config is not None:
        build = functools.partial(
            WandbTracker,
            config,
            run_dir,
            resolved_config,
            run_id=run_id,
            backlog=read_metrics(metrics),
            has_failed=lambda: trackers.run_has_failed,
        )
        trackers.add_wandb(build)
    return trackers
