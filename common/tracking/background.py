"""A sink that may block, fail or hang, in a thread of its own: whoever logs to it never waits for it."""

import logging
import queue
import threading
import time
from collections.abc import Callable

from common.errors import UserError
from common.tracking.measurement import Measurement, Tracker

logger = logging.getLogger(__name__)

# Measurements that may wait for a sink before it is given up.
_MOST_WAITING = 10_000

# How long a sink that was given up has to end, in seconds.
_LAST_WORD_IN_S = 2.0


class BackgroundTracker:
    """Builds a sink, hands measurements to it and finishes it, all in one thread that ends with the process.

    The first failure is the one that is told; then the sink gets nothing more but finish(). One that lets _MOST_WAITING
    measurements wait is given up, too: what it takes of those after all is what came first, without a gap.
    """

    def __init__(
        self,
        name: str,
        build: Callable[[], Tracker],
        *,
        patience_in_s: float = 0.0,
        abandon: Callable[[], None] | None = None,
    ) -> None:
        """Args:
        name: of the sink, in warnings.
        build: makes the sink; called in the thread.
        patience_in_s: how long to wait until it is built.
        abandon: lets go a sink that hangs, so that the process can end; None: nothing helps, or needs to.

        Raises:
          UserError: `build` does, while waited for.
        """
        self._name = name
        self._build = build
        self._abandon = abandon
        self._queue: queue.SimpleQueue[Measurement | None] = queue.SimpleQueue()
        self._is_off = False
        self._is_stuck = False
        self._is_built = threading.Event()
        self._mistake: UserError | None = None
        self._thread = threading.Thread(target=self._run, name=f"tracker {name}", daemon=True)
        self._thread.start()
        if patience_in_s > 0 and self._is_built.wait(patience_in_s) and self._mistake is not None:
            raise self._mistake

    def log(self, measurement: Measurement) -> None:
        """Returns at once."""
        if self._mistake is not None:  # found when nobody waited for it any more
            self._give_up("could not be set up; going on without it", self._mistake)
        if self._is_off:
            return
        if self._queue.qsize() >= _MOST_WAITING:
            self._is_stuck = True
            self._give_up(
                f"takes no measurements ({_MOST_WAITING:,} are waiting) and is switched off at step {measurement.step}"
            )
            return
        self._queue.put(measurement)

    def begin_finish(self) -> None:
        """Asks the sink to end when it has taken what is waiting."""
        self._queue.put(None)

    def finish(self, deadline: float) -> None:
        """Returns when the sink has ended, or is abandoned.

        deadline: of time.monotonic().
        """
        self._thread.join(_LAST_WORD_IN_S if self._is_stuck else max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            self._give_up("did not end in time; what it was not handed is missing in it")
            if self._abandon is not None:
                self._abandon()
                self._thread.join(_LAST_WORD_IN_S)

    def _run(self) -> None:
        """The thread."""
        try:
            sink = self._build()
        except UserError as error:
            self._mistake = error
            return
        except BaseException as error:
            self._give_up("could not be set up; going on without it", error)
            return
        finally:
            self._is_built.set()
        has_failed = False
        while (measurement := self._queue.get()) is not None:
            if has_failed:
                continue
            try:
                sink.log(measurement)
            except BaseException as error:
                has_failed = True
                self._give_up(f"failed at step {measurement.step} and is switched off", error)
        try:
            sink.finish()
        except BaseException as error:
            self._give_up("failed to finish", error)

    def _give_up(self, what_happened: str, error: BaseException | None = None) -> None:
        """Tells the first failure."""
        if not self._is_off:
            self._is_off = True
            cause = "" if error is None else f": {type(error).__name__}: {error}"
            logger.warning("Tracker %s %s%s", self._name, what_happened, cause)
