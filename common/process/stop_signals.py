"""SIGTERM and SIGINT: the first lets training end with a checkpoint, the second ends the process at once.

Python's own handlers wait while the main thread is within C++, as in a collective that another rank never joins. So a
thread, which the handler below them wakes, does what must not wait. The standard library alone: programs begin with
this, before imports that take seconds.
"""

import contextlib
import faulthandler
import os
import signal
import socket
import threading
import time
import types
from collections.abc import Callable, Iterator
from typing import NoReturn

_SIGNALS = (signal.SIGTERM, signal.SIGINT)

# A service manager that signals a whole control group reaches a worker twice: by itself, and through torchrun.
_AS_ONE_IN_S = 0.5

_STDERR = 2


def end_at_signals() -> None:
    """From now on SIGTERM and SIGINT end the process at once, with 128 + their number, a message and no traceback.

    For a program, as its first statement. Holds until StopSignals takes over, or somebody else sets a handler.
    """
    wakeups = _Wakeups()
    for number in _SIGNALS:
        signal.signal(number, _leave_to_thread)

    def react() -> None:
        for number in wakeups:
            if number is not None and signal.getsignal(number) is _leave_to_thread:
                _say(f"ended by {number.name} before training; the same command starts again", rank_0_only=True)
                os._exit(128 + number)

    threading.Thread(target=react, name="signals", daemon=True).start()


def leave_signals_to_python() -> None:
    """Takes end_at_signals() back: SIGINT raises KeyboardInterrupt, as debuggers have it."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


class StopSignals:
    """While entered, the first SIGTERM or SIGINT sets a flag; the second one, half a second later or more, ends the
    process at once with 128 + its number. So does the end of the grace period, with 1, and the stacks of all threads.

    In a program that began with end_at_signals() that stays so afterwards: what is left there is to end.
    """

    def __init__(
        self, grace_period_in_s: float | None = None, situation: Callable[[], str] = lambda: "unknown"
    ) -> None:
        """Args:
        grace_period_in_s: longest time from the first signal to the end of the process; None: no limit.
        situation: what the process is doing, for the message at the end of the grace period; called in a thread.
        """
        self.received: signal.Signals | None = None
        """The first one."""
        self._grace_period_in_s = grace_period_in_s
        self._situation = situation
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> "StopSignals":
        self._wakeups = _Wakeups()
        for number in _SIGNALS:
            self._before[number] = signal.signal(number, self._set_flag)
        threading.Thread(target=self._react, name="stop signals", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        if _leave_to_thread in self._before.values():
            return
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._wakeups.close()

    def _set_flag(self, number: int, _: types.FrameType | None) -> None:
        if self.received is None:
            self.received = signal.Signals(number)

    def _react(self) -> None:
        """In the thread."""
        began: float | None = None
        for number in self._wakeups:
            if number is None:
                self._end_of_grace()
            if signal.getsignal(number) != self._set_flag:  # somebody else's now
                continue
            if began is None:
                began = time.monotonic()
                self._set_flag(number, None)
                limit = ""
                if self._grace_period_in_s is not None:
                    self._wakeups.deadline = began + self._grace_period_in_s
                    limit = f" within {self._grace_period_in_s:g} s"
                _say(f"{number.name}: ends{limit}; a second signal ends at once", rank_0_only=True)
            elif time.monotonic() - began >= _AS_ONE_IN_S:
                _say(f"{number.name} again: ended at once; the same command continues")
                os._exit(128 + number)

    def _end_of_grace(self) -> NoReturn:
        assert self.received is not None
        _say(
            f"not ended within runtime.grace_period_in_s ({self._grace_period_in_s:g} s) of {self.received.name}: "
            f"{self._situation()}. Is another rank lost or hanging, or a save slow? The stacks of all threads:"
        )
        faulthandler.dump_traceback(_STDERR)
        _say("ended at once; the same command continues")
        os._exit(1)


class _Wakeups:
    """The signals of the process as they come, for a thread; None at the deadline, once there is one."""

    def __init__(self) -> None:
        self.deadline: float | None = None
        """On time.monotonic()'s clock."""
        self._receiver, self._sender = socket.socketpair()
        self._sender.setblocking(False)
        self._before = signal.set_wakeup_fd(self._sender.fileno(), warn_on_full_buffer=False)

    def __iter__(self) -> Iterator[signal.Signals | None]:
        while True:
            left = None if self.deadline is None else max(self.deadline - time.monotonic(), 1e-3)
            self._receiver.settimeout(left)
            try:
                numbers = self._receiver.recv(64)
            except TimeoutError:
                yield None
                continue
            if not numbers:
                self._receiver.close()
                return
            yield from (signal.Signals(number) for number in numbers if number in _SIGNALS)

    def close(self) -> None:
        signal.set_wakeup_fd(self._before)
        self._sender.close()


def _leave_to_thread(_number: int, _frame: types.FrameType | None) -> None:
    pass


def _say(message: str, *, rank_0_only: bool = False) -> None:
    rank = os.environ.get("RANK", "0")
    if rank != "0" and rank_0_only:
        return
    where = f"rank {rank}: " if "RANK" in os.environ else ""
    with contextlib.suppress(OSError):  # nobody may take it; what is to be done is done all the same
        os.write(_STDERR, f"{where}{message}\n".encode())
