"""Reports a hang: what is not making progress and for how long, with the stacks of all threads of this rank.

The cause is often another rank. Every rank has a watchdog, so the ranks that wait for it report where they wait.
"""

import contextlib
import faulthandler
import os
import threading
import time

_STDERR = 2


class Watchdog:
    """Reports when more time than a limit passes between two beats.

    A beat only stores a value, which a thread compares with the clock.
    """

    def __init__(self, rank: int, limit_in_s: float | None) -> None:
        """Initialize.

        Args:
          rank: rank of this process, for the report.
          limit_in_s: longest time between two beats, in seconds. None reports no hangs.
        """
        self._rank = rank
        self._limit_in_s = limit_in_s
        self._beat: tuple[str, int | None, float] = ("startup", None, time.monotonic())
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        if self._limit_in_s is not None:
            self._arm(self._limit_in_s)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._limit_in_s is not None:
            self._closed.set()
            self._thread.join()

    def beat(self, what: str, number: int | None = None) -> None:
        """Record that this rank is making progress and starts `what` (with its number: a step or a batch)."""
        self._beat = (what, number, time.monotonic())

    def situation(self) -> str:
        """Describe what this rank is doing, and for how long."""
        what, number, since = self._beat
        return f"{what}{'' if number is None else f' {number}'} for {time.monotonic() - since:.1f} s"

    def _arm(self, limit_in_s: float) -> None:
        """Arm a timer below Python, for a thread that never releases the interpreter's lock and blocks the watchdog."""
        faulthandler.dump_traceback_later(1.3 * limit_in_s, file=_STDERR)

    def _watch(self) -> None:
        """Compare beats with the clock. Runs in the thread."""
        assert self._limit_in_s is not None
        seen, is_reported = self._beat, False
        while not self._closed.wait(self._limit_in_s / 10):
            beat = self._beat
            if beat is not seen:
                seen, is_reported = beat, False
                self._arm(self._limit_in_s)
            elif not is_reported and time.monotonic() - beat[2] >= self._limit_in_s:
                faulthandler.cancel_dump_traceback_later()
                is_reported = True
                message = (
                    f"rank {self._rank}: {self.situation()}, longer than runtime.hang_dump_after_in_s "
                    f"({self._limit_in_s:g} s). This rank or another one may be hanging. Stacks of all threads:\n"
                )
                with contextlib.suppress(OSError):  # standard error may be closed
                    os.write(_STDERR, message.encode(errors="backslashreplace"))
                faulthandler.dump_traceback(_STDERR)
        faulthandler.cancel_dump_traceback_later()
