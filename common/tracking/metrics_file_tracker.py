"""Writes `metrics.jsonl` during training and keeps measurements in memory while the file cannot be written."""

import collections
import logging
import threading
from collections.abc import Callable
from pathlib import Path

from common.tracking.measurement import Measurement
from common.tracking.metrics_file import MetricsFile

logger = logging.getLogger(__name__)

# Maximum number of measurements kept in memory while the file cannot be written: a few kB each, megabytes in all.
_MAX_PENDING = 10_000


class MetricsFileTracker:
    """Appends each measurement immediately. If that fails, keeps it and retries with each later measurement.

    The constructor raises what MetricsFile raises. No other method raises OSError. Each outage causes one warning.
    """

    def __init__(self, path: Path, last_step: int | None, may_write: Callable[[], bool] = lambda: True) -> None:
        """Open the file.

        Args:
          path: path of the file.
          last_step: step that the run resumes from; later lines are removed. None keeps all lines.
          may_write: called before each line. Once it returns False, because the file belongs to another process, no
            more measurements are written or kept.
        """
        self._may_write = may_write
        self._file = MetricsFile(path, last_step)
        self._pending: collections.deque[Measurement] = collections.deque()
        self._num_dropped = 0  # since the outage began
        self._is_failing = False
        self._sync_failed = False
        self._lock = threading.Lock()

    def log(self, measurement: Measurement) -> None:
        """Append a measurement, or keep it in memory if the file cannot be written."""
        with self._lock:
            self._pending.append(measurement)
            if len(self._pending) > _MAX_PENDING:
                self._pending.popleft()
                self._num_dropped += 1
            self._write()

    def sync(self) -> None:
        """Make everything logged so far durable. Log a warning if that fails. Any thread may call this."""
        with self._lock:
            self._write()
        try:  # without the lock, so that log() does not wait for the disk
            self._file.sync()
        except OSError as error:
            if not self._sync_failed:
                logger.warning("cannot synchronize %s to disk: %s", self._file.path, error.strerror)
            self._sync_failed = True
        else:
            self._sync_failed = False

    def finish(self) -> None:
        """Write the pending measurements and close the file. Log a warning if any are lost."""
        with self._lock:
            self._write()
            if missing := self._num_dropped + len(self._pending):
                logger.warning("%s: %d measurement(s) could not be written and are missing", self._file.path, missing)
            self._pending.clear()
            self._file.close()

    def _write(self) -> None:
        path = self._file.path
        try:
            while self._pending:
                if not self._may_write():
                    self._pending.clear()
                    return
                self._file.append(self._pending[0])
                self._pending.popleft()
        except OSError as error:
            if not self._is_failing:
                logger.warning(
                    "cannot write %s: %s. Training continues; up to %s measurements stay in memory until the file can "
                    "be written again.",
                    path,
                    error.strerror,
                    f"{_MAX_PENDING:,}",
                )
            self._is_failing = True
            return
        if self._is_failing:
            if self._num_dropped:
                logger.warning("writing %s again; %d measurement(s) are missing", path, self._num_dropped)
            else:
                logger.info("writing %s again; no measurement is missing", path)
            self._is_failing, self._num_dropped = False, 0
