"""Sends signals to real processes: a first one, a second one, and none until the grace period ends."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from common.process.stop_signals import StopSignals, leave_signals_to_python, stop_signals
from tests.support.root import ROOT

IMPORTS = """
import ctypes, os, signal, sys, threading, time
from common.process.stop_signals import StopSignals, exit_on_signals
LIBC, MUTEX = ctypes.CDLL(None), ctypes.create_string_buffer(64)
"""
# Locking a mutex twice blocks in C, like a collective: the interpreter cannot run signal handlers.
BLOCK_IN_C = "LIBC.pthread_mutex_lock(MUTEX); LIBC.pthread_mutex_lock(MUTEX)"
STATUS = {
    signal.SIGTERM: 143,
    signal.SIGINT: 130,
    signal.SIGHUP: 129,
    signal.SIGQUIT: 131,
    signal.SIGUSR1: 138,
    signal.SIGUSR2: 140,
    signal.SIGXCPU: 152,
}
"""Exit status of an immediate exit, by stop signal."""


class Program:
    """Runs Python statements in a process of their own. They print "ready" when the test may continue."""

    def __init__(self, body: str, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", IMPORTS + body],
            cwd=ROOT,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait_for(self, line: str) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == f"{line}\n"

    def end(self) -> tuple[int, str]:
        """Wait for the process and return its exit status and standard error."""
        try:
            _, stderr = self.process.communicate(timeout=60)
        finally:
            self.process.kill()
        return self.process.returncode, stderr


@pytest.fixture
def handlers() -> Iterator[dict[signal.Signals, Any]]:
    """Return the handlers before the test, and restore them after it."""
    before = {number: signal.getsignal(number) for number in STATUS}
    yield {**before}
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", STATUS)
def test_a_signal_sets_a_flag_and_simultaneous_signals_count_as_one(handlers, number):
    with StopSignals() as stop:
        assert stop.received is None
        os.kill(os.getpid(), number)
        assert stop.received is number
        for other in STATUS:
            os.kill(os.getpid(), other)
        assert stop.received is number
    assert {n: signal.getsignal(n) for n in handlers} == handlers


@pytest.mark.usefixtures("handlers")
def test_previous_handlers_are_restored():
    seen: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: seen.append(number))
    with pytest.raises(RuntimeError, match="within"), StopSignals(1e-3):
        raise RuntimeError("within")
    with StopSignals():
        os.kill(os.getpid(), signal.SIGTERM)
    assert seen == []
    os.kill(os.getpid(), signal.SIGTERM)
    assert seen == [signal.SIGTERM]


@pytest.mark.parametrize(
    ("first", "second"),
    [(signal.SIGTERM, signal.SIGINT), (signal.SIGINT, signal.SIGHUP), (signal.SIGXCPU, signal.SIGUSR1)],
)
def test_the_second_signal_exits_at_once_even_in_c_code(first, second):
    program = Program(f"with StopSignals():\n    print('ready', flush=True)\n    {BLOCK_IN_C}")
    program.wait_for("ready")
    program.process.send_signal(first)
    assert program.process.stderr is not None
    assert program.process.stderr.readline() == f"received {first.name}; stopping. A second signal exits immediately.\n"
    time.sleep(0.6)  # signals within half a second count as one
    program.process.send_signal(second)
    status, stderr = program.end()
    assert status == STATUS[second]
    assert stderr.startswith(f"received {second.name} again; exiting now.")
    assert stderr.count("\n") == 1


def test_the_end_of_the_grace_period_exits_with_the_situation_and_all_stacks():
    program = Program(
        f"""
def waits_forever():
    {BLOCK_IN_C}
with StopSignals(0.1, lambda: "step 7 for 30 s"):
    print("ready", flush=True)
    waits_forever()
""",
        RANK="3",
    )
    program.wait_for("ready")
    program.process.send_signal(signal.SIGTERM)
    status, stderr = program.end()
    assert status == 1
    assert stderr.startswith(
        "rank 3: did not stop within runtime.grace_period_in_s (0.1 s) of SIGTERM: step 7 for 30 s. "
    )
    assert "in waits_forever" in stderr
    assert "in _end_of_grace_period" in stderr
    assert stderr.endswith("rank 3: exiting now. Run the same command again to continue.\n")


def test_the_end_of_the_grace_period_exits_even_if_standard_error_is_closed():
    program = Program(f"with StopSignals(0.1):\n    print('ready', flush=True)\n    {BLOCK_IN_C}")
    program.wait_for("ready")
    assert program.process.stderr is not None
    program.process.stderr.close()
    try:
        program.process.send_signal(signal.SIGTERM)
        assert program.process.wait(60) == 1
    finally:
        program.process.kill()


def test_repeated_sigxcpu_is_not_a_second_signal():
    """The kernel repeats it every second. Signals are handled in order, so SIGTERM ends the process only then."""
    program = Program(f"with StopSignals():\n    print('ready', flush=True)\n    {BLOCK_IN_C}")
    program.wait_for("ready")
    program.process.send_signal(signal.SIGXCPU)
    assert program.process.stderr is not None
    assert program.process.stderr.readline().startswith("received SIGXCPU; stopping.")
    time.sleep(0.6)  # signals within half a second count as one
    program.process.send_signal(signal.SIGXCPU)
    program.process.send_signal(signal.SIGTERM)
    assert program.end()[0] == STATUS[signal.SIGTERM]


@pytest.mark.parametrize("prepare", ["exit_on_signals()", ""])
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU])
def test_an_ignored_signal_stays_ignored(number, prepare):
    """This is how nohup works. Python sends the signal to itself, so it has arrived when kill() returns."""
    program = Program(f"""
signal.signal(signal.{number.name}, signal.SIG_IGN)
{prepare}
os.kill(os.getpid(), signal.{number.name})
with StopSignals() as stop:
    os.kill(os.getpid(), signal.{number.name})
    assert stop.received is None
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop.received is signal.SIGTERM
assert signal.getsignal(signal.{number.name}) is signal.SIG_IGN
""")
    status, stderr = program.end()
    assert (status, number.name in stderr) == (0, False), stderr


@pytest.mark.usefixtures("handlers")
def test_sigint_stops_even_if_a_shell_ignores_it_for_a_command_in_the_background():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert set(STATUS) - set(stop_signals()) == {signal.SIGHUP}


@pytest.mark.usefixtures("handlers")
def test_signals_are_left_to_python():
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    leave_signals_to_python()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN


def test_a_message_with_a_path_that_is_not_unicode_is_written():
    program = Program(f"with StopSignals(0.1, lambda: '\\udcff'):\n    print('ready', flush=True)\n    {BLOCK_IN_C}")
    program.wait_for("ready")
    program.process.send_signal(signal.SIGTERM)
    status, stderr = program.end()
    assert status == 1
    assert "\\udcff" in stderr


@pytest.mark.parametrize(("rank", "number"), [(0, number) for number in STATUS] + [(1, signal.SIGINT)])
def test_a_signal_before_training_exits_at_once_and_only_rank_0_prints(rank, number):
    program = Program(f"exit_on_signals()\nprint('ready', flush=True)\n{BLOCK_IN_C}", RANK=str(rank))
    program.wait_for("ready")
    program.process.send_signal(number)
    status, stderr = program.end()
    assert status == STATUS[number]
    assert stderr.startswith(f"rank 0: received {number.name} before training started; exiting.") == (rank == 0)
    assert stderr.count("\n") == (1 if rank == 0 else 0)


@pytest.mark.parametrize("number", [number for number in STATUS if number != signal.SIGINT])
def test_other_programs_unwind_and_exit(number, tmp_path):
    program = Program(f"""
from common.files.atomic_directory import atomic_directory
from common.process.program import run
from pathlib import Path
def main():
    with atomic_directory(Path({str(tmp_path / "out")!r})) as partial:
        (partial / "file").write_text("")
        print("ready", flush=True)
        time.sleep(60)
    return 0
run(main, "starts over", one_process=True)
""")
    program.wait_for("ready")
    assert list(tmp_path.iterdir())
    program.process.send_signal(number)
    assert program.end() == (STATUS[number], f"received {number.name}; exiting.\n")
    assert not list(tmp_path.iterdir())


def test_a_signal_after_training_does_not_interrupt_the_end_of_the_program():
    """A signal sent by both a service manager and torchrun may arrive the second time after training has ended."""
    program = Program(
        """
exit_on_signals()
with StopSignals(60.0) as stop:
    print("ready", flush=True)
    while stop.received is None: time.sleep(0.01)
os.kill(os.getpid(), signal.SIGTERM)
sys.stderr.write("the end")
"""
    )
    program.wait_for("ready")
    program.process.send_signal(signal.SIGTERM)
    status, stderr = program.end()
    assert status == 0
    assert "the end" in stderr
    assert "exiting" not in stderr
