"""Holds the trackers of a run and passes measurements to them.

The metrics file is written immediately. Every other tracker runs in its own thread. A tracker that fails causes one
warning, and neither stops nor slows down training. The training loop decides what to measure and when.
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
from common.tracking.run_files import FOLLOWER_METRICS, METRICS
from common.tracking.wandb import JobType, WandbTracker
from common.wandb import WandbConfig

logger = logging.getLogger(__name__)

# Longest wait for a tracker to be built. After it, training starts and the tracker is still being built.
_BUILD_TIMEOUT_IN_S = 30.0

# Longest wait for all trackers together at the end of a run. Less than the 30 s that torchrun gives a job to stop.
_FINISH_TIMEOUT_IN_S = 20.0


class Trackers:
    """The trackers of a run. Only rank 0 has any. Without trackers, all methods do nothing.

    No method lets the exception of a tracker escape, except a UserError while the tracker is being added.
    """

    def __init__(self) -> None:
        self._metrics_file: MetricsFileTracker | None = None
        self._wandb: WandbTracker | None = None
        self._background: list[BackgroundTracker] = []

    @property
    def run_id(self) -> str | None:
        """W&B's id of this run, to be saved in the checkpoint; None without W&B."""
        return self._wandb.run_id if self._wandb is not None else None

    def add_metrics_file(self, path: Path, last_step: int | None, may_write: Callable[[], bool]) -> None:
        """Add the metrics file. Takes the arguments of MetricsFileTracker and raises its UserError."""
        try:
            self._metrics_file = MetricsFileTracker(path, last_step, may_write)
        except OSError as error:
            logger.warning("cannot write %s: %s. Continuing without it.", path, error.strerror)

    def add_wandb(self, build: Callable[[], WandbTracker]) -> None:
        """Add W&B, which starts in the background.

        Args:
          build: returns the tracker; called immediately.

        Raises:
          UserError: `build` raised it. Any other exception causes one warning.
        """
        try:
            tracker = build()
        except UserError:
            raise
        except Exception as error:
            logger.warning("W&B could not be set up; continuing without it: %s: %s", type(error).__name__, error)
            return
        self._wandb = tracker
        self._background.append(BackgroundTracker("Weights & Biases", tracker.start, abort=tracker.kill_service))

    def add(self, name: str, build: Callable[[], Tracker]) -> None:
        """Add a tracker that runs in its own thread.

        Args:
          name: name of the tracker in warnings.
          build: returns the tracker; called in the thread.

        Raises:
          UserError: `build` raised it, so the user sees the error before training starts.
        """
        self._background.append(BackgroundTracker(name, build, build_timeout_in_s=_BUILD_TIMEOUT_IN_S))

    def log(self, measurement: Measurement) -> None:
        """Pass the measurement to each tracker."""
        if self._metrics_file is not None:
            self._metrics_file.log(measurement)
        for tracker in self._background:
            tracker.log(measurement)

    def sync(self) -> None:
        """Make the metrics file durable, which a resume needs. Any thread may call this."""
        if self._metrics_file is not None:
            self._metrics_file.sync()

    def finish(self) -> None:
        """Finish each tracker within a time limit, or immediately after an interrupt. A second call does nothing.

        If an exception is being handled, W&B marks the run as failed.
        """
        error = sys.exception()
        if self._metrics_file is not None:
            self._metrics_file.finish()
            self._metrics_file = None
        if self._wandb is not None:
            self._wandb.run_has_failed = error is not None
        background, self._background = self._background, []
        deadline = time.monotonic() + (0.0 if isinstance(error, KeyboardInterrupt) else _FINISH_TIMEOUT_IN_S)
        for tracker in background:
            tracker.begin_finish()
        for tracker in background:
            tracker.finish(deadline)


def build_trackers(
    run_dir: Path,
    config: WandbConfig | None,
    resolved_config: Mapping[str, Any],
    last_step: int | None = None,
    *,
    job_type: JobType = "train",
    run_id: str | None = None,
    group: str | None = None,
    may_write: Callable[[], bool] = lambda: True,
) -> Trackers:
    """Return the trackers of a trainer or a follower. Call this on rank 0 only.

    A trainer gets the metrics file and, if configured, W&B. A follower gets only W&B, because it writes its metrics
    file itself. W&B first receives the measurements in the metrics file that it has not received yet.

    Args:
      run_dir: save_dir of the run.
      config: W&B settings; None for no W&B.
      resolved_config: configuration that W&B displays; JSON values.
      last_step: step that a trainer resumes from, 0 for a fresh run; later lines of the metrics file are removed. None
        keeps all lines.
      job_type: "train" for a trainer, "evaluate" for a follower.
      run_id: W&B run id in the checkpoint, used if run_dir has none.
      group: W&B run id of the trainer, for a follower.
      may_write: returns False once the metrics file belongs to another process.

    Raises:
      UserError: the metrics file is damaged, or the key file is not usable. Any other failure causes one warning.
    """
    trackers = Trackers()
    metrics = run_dir / (METRICS if job_type == "train" else FOLLOWER_METRICS)
    if job_type == "train":
        trackers.add_metrics_file(metrics, last_step, may_write)
    if config is not None:
        build = functools.partial(
            WandbTracker,
            config,
            run_dir,
            resolved_config,
            job_type=job_type,
            run_id=run_id,
            group=group,
            backlog=read_metrics(metrics),
        )
        trackers.add_wandb(build)
    return trackers
