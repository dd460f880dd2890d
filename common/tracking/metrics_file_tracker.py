"""The sink that writes `metrics.jsonl`, through outages of the disk."""

import collections
import logging
import threading
from pathlib import Path

from common.tracking.measurement import Measurement
from common.tracking.metrics_file import MetricsFile

logger = logging.getLogger(__name__)

# What is kept in memory while the disk refuses lines: megabytes, a few kB each.
_MOST_WAITING = 10_000


class MetricsFileTracker:
    """Appends each measurement at once. What the disk refuses waits in memory, and is tried again with each later one.

    Opening it raises what MetricsFile raises; nothing else raises an OSError. Each outage is one warning.
    """

    def __init__(self, path: Path, last_step: int | None) -> None:
        """Args:
        path: of the file.
        last_step: the step that the run goes on from; later lines are cut. None: no limit.
        """
        self._file = MetricsFile(path, last_step)
        self._waiting: collections.deque[Measurement] = collections.deque()
        self._lost = 0  # since the outage began
        self._is_out = False
        self._sync_failed = False
        self._lock = threading.Lock()

    def log(self, measurement: Measurement) -> None:
        with self._lock:
            self._waiting.append(measurement)
            if len(self._waiting) > _MOST_WAITING:
                self._waiting.popleft()
                self._lost += 1
            self._write()

    def sync(self) -> None:
        """Returns when all that was logged is durable, or a warning has said that it is not. Any thread may call it."""
        with self._lock:
            self._write()
        try:  # without the lock: log() doesn't wait for the disk
            self._file.sync()
        except OSError as error:
            if not self._sync_failed:
                logger.warning("%s can't be synchronised to disk: %s", self._file.path, error.strerror)
            self._sync_failed = True
        else:
            self._sync_failed = False

    def finish(self) -> None:
        with self._lock:
            self._write()
            if missing := self._lost + len(self._waiting):
                logger.warning("%s: %d measurement(s) could not be written and are missing", self._file.path, missing)
            self._waiting.clear()
            self._file.close()

    def _write(self) -> None:
        path = self._file.path
        try:
            while self._waiting:
                self._file.append(self._waiting[0])
                self._waiting.popleft()
        except OSError as error:
            if not self._is_out:
                logger.warning(
                    "%s can't be written: %s; training goes on, up to %s measurements wait until it can",
                    path,
                    error.strerror,
                    f"{_MOST_WAITING:,}",
                )
            self._is_out = True
            return
        if self._is_out:
            if self._lost:
                logger.warning("%s is written again; %d measurement(s) are missing", path, self._lost)
            else:
                logger.info("%s is written again, nothing is missing", path)
            self._is_out, self._lost = False, 0
