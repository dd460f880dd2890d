"""Tells of a hang: nothing has come on for too long, where, and the stacks of all threads of this rank.

The one that is looked for is often another rank: each has a watchdog, and those that wait for it tell where they do.
"""

import contextlib
import faulthandler
import os
import threading
import time

_STDERR = 2


class Watchdog:
    """Between beats no more time may pass than the limit. A beat is a store: the clock is looked at by a thread."""

    def __init__(self, rank: int, limit_in_s: float | None) -> None:
        """limit_in_s: None: hangs are not told of."""
        self._rank = rank
        self._limit_in_s = limit_in_s
        self._beat: tuple[str, int | None, float] = ("begin", None, time.monotonic())
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
        """Something has come on, and `what` (its step, its batch) begins."""
        self._beat = (what, number, time.monotonic())

    def situation(self) -> str:
        """What goes on, and for how long it has."""
        what, number, since = self._beat
        return f"{what}{'' if number is None else f' {number}'} for {time.monotonic() - since:.1f} s"

    def _arm(self, limit_in_s: float) -> None:
        """Below Python, for a thread that never lets go of the interpreter's lock, so that the watchdog can't run."""
        faulthandler.dump_traceback_later(1.3 * limit_in_s, file=_STDERR)

    def _watch(self) -> None:
        """In the thread."""
        assert self._limit_in_s is not None
        seen, told = self._beat, False
        while not self._closed.wait(self._limit_in_s / 10):
            beat = self._beat
            if beat is not seen:
                seen, told = beat, False
                self._arm(self._limit_in_s)
            elif not told and time.monotonic() - beat[2] >= self._limit_in_s:
                faulthandler.cancel_dump_traceback_later()
                told = True
                message = (
                    f"rank {self._rank}: {self.situation()}, longer than runtime.hang_dump_after_in_s "
                    f"({self._limit_in_s:g} s): does it, or another rank, hang? The stacks of all threads:\n"
                )
                with contextlib.suppress(OSError):  # nobody takes it
                    os.write(_STDERR, message.encode())
                faulthandler.dump_traceback(_STDERR)
        faulthandler.cancel_dump_traceback_later()
