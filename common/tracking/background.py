"""Runs a tracker that may block, fail or hang in its own thread, so that training never waits for it."""

import logging
import queue
import threading
import time
from collections.abc import Callable

from common.errors import UserError
from common.tracking.measurement import Measurement, Tracker

logger = logging.getLogger(__name__)

# Length of the queue at which a tracker is switched off.
_MAX_QUEUED = 10_000

# Longest wait for the thread of a tracker that blocks or was aborted, in seconds.
_LAST_WAIT_IN_S = 2.0


class BackgroundTracker:
    """Builds a tracker, passes measurements to it and finishes it, all in one daemon thread.

    Only the first failure is logged. After it, the tracker receives no measurements, only finish(). A tracker that lets
    the queue grow to _MAX_QUEUED measurements is switched off too. It still receives the queued measurements, so that
    there are no gaps in what it has recorded.
    """

    def __init__(
        self,
        name: str,
        build: Callable[[], Tracker],
        *,
        build_timeout_in_s: float = 0.0,
        abort: Callable[[], None] | None = None,
    ) -> None:
        """Start the thread.

        Args:
          name: name of the tracker in warnings.
          build: returns the tracker; called in the thread.
          build_timeout_in_s: longest time to wait until the tracker is built.
          abort: called to stop a tracker that hangs so that the process can exit. None if there is nothing to stop.

        Raises:
          UserError: `build` raised it within build_timeout_in_s.
        """
        self._name = name
        self._build = build
        self._abort = abort
        self._queue: queue.SimpleQueue[Measurement | None] = queue.SimpleQueue()
        self._is_off = False
        self._is_stuck = False
        self._is_built = threading.Event()
        self._build_error: UserError | None = None
        self._thread = threading.Thread(target=self._run, name=f"tracker {name}", daemon=True)
        self._thread.start()
        if build_timeout_in_s > 0 and self._is_built.wait(build_timeout_in_s) and self._build_error is not None:
            raise self._build_error

    def log(self, measurement: Measurement) -> None:
        """Queue one measurement and return immediately."""
        if self._build_error is not None:  # raised after the wait in __init__
            self._switch_off("could not be set up; continuing without it", self._build_error)
        if self._is_off:
            return
        if self._queue.qsize() >= _MAX_QUEUED:
            self._is_stuck = True
            self._switch_off(
                f"is too slow ({_MAX_QUEUED:,} measurements are queued) and was switched off at step {measurement.step}"
            )
            return
        self._queue.put(measurement)

    def begin_finish(self) -> None:
        """Ask the tracker to finish once it has recorded the queued measurements."""
        self._queue.put(None)

    def finish(self, deadline: float) -> None:
        """Wait until the tracker has finished, or abort it at the deadline.

        Args:
          deadline: time on the clock of time.monotonic().
        """
        self._thread.join(_LAST_WAIT_IN_S if self._is_stuck else max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            self._switch_off("did not finish in time; its last measurements are missing")
            if self._abort is not None:
                self._abort()
                self._thread.join(_LAST_WAIT_IN_S)

    def _run(self) -> None:
        """Run the tracker in the thread."""
        try:
            tracker = self._build()
        except UserError as error:
            self._build_error = error
            return
        except BaseException as error:
            self._switch_off("could not be set up; continuing without it", error)
            return
        finally:
            self._is_built.set()
        has_failed = False
        while (measurement := self._queue.get()) is not None:
            if has_failed:
                continue
            try:
                tracker.log(measurement)
            except BaseException as error:
                has_failed = True
                self._switch_off(f"failed at step {measurement.step} and was switched off", error)
        try:
            tracker.finish()
        except BaseException as error:
            self._switch_off("failed to finish", error)

    def _switch_off(self, what_happened: str, error: BaseException | None = None) -> None:
        """Stop queuing measurements. Log a warning if this is the first failure."""
        if not self._is_off:
            self._is_off = True
            cause = "" if error is None else f": {type(error).__name__}: {error}"
            logger.warning("Tracker %s %s%s", self._name, what_happened, cause)
