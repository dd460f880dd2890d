"""Handles stop signals: the first one stops training with a checkpoint, the second one exits immediately.

The stop signals are those that people, terminals and schedulers send to end a process (docs/stopping.md lists them).

Python runs signal handlers in the main thread, and only when that thread is not in C++ code. A collective that another
rank never joins would therefore block them. The low-level handler wakes up a thread instead, which does everything that
must not wait.

This module imports nothing that takes long, because programs call it before imports that take seconds.
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

from common.process import rerun

_SIGNALS = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,  # the terminal or the connection was closed
    signal.SIGQUIT,  # Ctrl-\ in a terminal; torchrun passes it on like the three above
    signal.SIGUSR1,  # Slurm (--signal) and Grid Engine (-notify) announce the end of a job this way
    signal.SIGUSR2,  # so do LSF and Grid Engine
    signal.SIGXCPU,  # the limit of processor time is reached; repeated every second up to the hard limit
)

# A service manager that signals a whole control group reaches a worker twice: directly and through torchrun. Signals
# within this time count as one.
_SAME_SIGNAL_WITHIN_S = 0.5

_STDERR = 2


def stop_signals() -> list[signal.Signals]:
    """Return the signals that stop this process.

    A signal that the process was started to ignore, as by `nohup`, or that a library handles is not one of them.
    SIGTERM and SIGINT always are: shells ignore SIGINT for commands in the background.
    """
    always, left_alone = (signal.SIGTERM, signal.SIGINT), (signal.SIG_IGN, None)
    return [number for number in _SIGNALS if number in always or signal.getsignal(number) not in left_alone]


def exit_on_signals(how_to_continue: str | None = None) -> None:
    """Make stop signals exit the process immediately, with status 128 + signal number and one message.

    Programs call this in their first statement. It applies until StopSignals takes over or another handler is set.

    Args:
      how_to_continue: advice for the user; None for that of a trainer that has not started to train.
    """
    received = _SignalQueue()
    for number in stop_signals():
        signal.signal(number, _leave_to_thread)

    def react() -> None:
        for number in received:
            if number is not None and signal.getsignal(number) is _leave_to_thread:
                when = " before training started" if how_to_continue is None else ""
                advice = rerun.capitalized(how_to_continue or rerun.how_to_start())
                _write(f"received {number.name}{when}; exiting. {advice}.", rank_0_only=True)
                os._exit(128 + number)

    threading.Thread(target=react, name="signals", daemon=True).start()


def unwind_on_signals() -> None:
    """Make stop signals raise SystemExit in the main thread, with status 128 + signal number and one message.

    Programs that do not train call this, so that they remove their temporary files. SIGINT raises KeyboardInterrupt, as
    usual.
    """

    def unwind(number: int, _: types.FrameType | None) -> NoReturn:
        global _unwinding
        _write(f"received {signal.Signals(number).name}; exiting.")
        _unwinding = SystemExit(128 + number)
        raise _unwinding

    for number in stop_signals():
        if number != signal.SIGINT:
            signal.signal(number, unwind)


_unwinding: SystemExit | None = None


def interruption() -> SystemExit | KeyboardInterrupt:
    """Return the exception of the stop signal that interrupted native code which replaced it by one of its own."""
    return _unwinding or KeyboardInterrupt()


def leave_signals_to_python() -> None:
    """Undo exit_on_signals(). SIGINT raises KeyboardInterrupt again, as debuggers expect."""
    for number in stop_signals():
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


class StopSignals:
    """Context manager that turns the first stop signal into a flag.

    A second signal, at least half a second later, exits the process immediately with status 128 + signal number, except
    SIGXCPU, which the kernel repeats. If the grace period ends first, the process writes the stacks of all threads and
    exits with status 1.

    In a program that called exit_on_signals(), the handlers stay in place after the context, because the program is
    about to end.
    """

    def __init__(
        self,
        grace_period_in_s: float | None = None,
        situation: Callable[[], str] = lambda: "unknown",
        how_to_continue: str = rerun.SAME_COMMAND,
    ) -> None:
        """Initialize without installing signal handlers.

        Args:
          grace_period_in_s: longest time from the first signal to the exit of the process; None for no limit.
          situation: describes what the process is doing when the grace period ends. Called in a thread.
          how_to_continue: advice for the user.
        """
        self.received: signal.Signals | None = None
        """First signal received, or None."""
        self._grace_period_in_s = grace_period_in_s
        self._situation = situation
        self._advice = rerun.capitalized(how_to_continue)
        self._previous_handlers: dict[signal.Signals, object] = {}

    def __enter__(self) -> "StopSignals":
        self._queue = _SignalQueue()
        for number in stop_signals():
            self._previous_handlers[number] = signal.signal(number, self._set_flag)
        threading.Thread(target=self._react, name="stop signals", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        if _leave_to_thread in self._previous_handlers.values():
            return
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._queue.close()

    def _set_flag(self, number: int, _: types.FrameType | None) -> None:
        if self.received is None:
            self.received = signal.Signals(number)

    def _react(self) -> None:
        """Handle the signals in a thread."""
        began: float | None = None
        for number in self._queue:
            if number is None:
                self._end_of_grace_period()
            if signal.getsignal(number) != self._set_flag:  # another handler has replaced ours
                continue
            if began is None:
                began = time.monotonic()
                self._set_flag(number, None)
                limit = ""
                if self._grace_period_in_s is not None:
                    self._queue.deadline = began + self._grace_period_in_s
                    limit = f" within {self._grace_period_in_s:g} s"
                _write(f"received {number.name}; stopping{limit}. A second signal exits immediately.", rank_0_only=True)
            elif number != signal.SIGXCPU and time.monotonic() - began >= _SAME_SIGNAL_WITHIN_S:
                _write(f"received {number.name} again; exiting now. {self._advice}.")
                os._exit(128 + number)

    def _end_of_grace_period(self) -> NoReturn:
        assert self.received is not None
        _write(
            f"did not stop within runtime.grace_period_in_s ({self._grace_period_in_s:g} s) of {self.received.name}: "
            f"{self._situation()}. Another rank may be lost or hanging, or a save may be slow. Stacks of all threads:"
        )
        faulthandler.dump_traceback(_STDERR)
        _write(f"exiting now. {self._advice}.")
        os._exit(1)


class _SignalQueue:
    """Yields the signals of the process to a thread as they arrive, and None when the deadline has passed."""

    def __init__(self) -> None:
        self.deadline: float | None = None
        """Time on the clock of time.monotonic(), or None."""
        self._receiver, self._sender = socket.socketpair()
        self._sender.setblocking(False)
        self._previous_wakeup_fd = signal.set_wakeup_fd(self._sender.fileno(), warn_on_full_buffer=False)

    def __iter__(self) -> Iterator[signal.Signals | None]:
        while True:
            timeout = None if self.deadline is None else max(self.deadline - time.monotonic(), 1e-3)
            self._receiver.settimeout(timeout)
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
        signal.set_wakeup_fd(self._previous_wakeup_fd)
        self._sender.close()


def _leave_to_thread(_number: int, _frame: types.FrameType | None) -> None:
    """Do nothing: the thread of exit_on_signals() handles the signal."""


def _write(message: str, *, rank_0_only: bool = False) -> None:
    rank = os.environ.get("RANK", "0")
    if rank != "0" and rank_0_only:
        return
    prefix = f"rank {rank}: " if "RANK" in os.environ else ""
    with contextlib.suppress(OSError):  # a message that cannot be written must not stop the exit
        os.write(_STDERR, f"{prefix}{message}\n".encode(errors="backslashreplace"))
