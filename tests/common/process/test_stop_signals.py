"""Signals to real processes: what the first one does, the second one, and the end of the grace period."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from common.process.stop_signals import StopSignals
from tests.support.root import ROOT

IMPORTS = """
import ctypes, os, signal, sys, threading, time
from common.process.stop_signals import StopSignals, end_at_signals
LIBC, MUTEX = ctypes.CDLL(None), ctypes.create_string_buffer(64)
"""
# A mutex that is locked twice: the interpreter can't run handlers meanwhile, as in a collective.
WITHIN_C = "LIBC.pthread_mutex_lock(MUTEX); LIBC.pthread_mutex_lock(MUTEX)"
STATUS = {signal.SIGTERM: 143, signal.SIGINT: 130}


class Program:
    """Python statements as a process, which says "ready" when it is."""

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
        """Exit status and standard error."""
        try:
            _, stderr = self.process.communicate(timeout=60)
        finally:
            self.process.kill()
        return self.process.returncode, stderr


@pytest.fixture
def handlers() -> Iterator[dict[signal.Signals, Any]]:
    """The handlers before the test; they are put back whatever the test does."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield {**before}
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", STATUS)
def test_a_signal_only_sets_a_flag_and_those_at_the_same_time_are_one(handlers, number):
    with StopSignals() as stop:
        assert stop.received is None
        os.kill(os.getpid(), number)
        assert stop.received is number
        for other in STATUS:
            os.kill(os.getpid(), other)
        assert stop.received is number
    assert {n: signal.getsignal(n) for n in handlers} == handlers


@pytest.mark.usefixtures("handlers")
def test_handlers_of_others_are_put_back():
    seen: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: seen.append(number))
    with pytest.raises(RuntimeError, match="within"), StopSignals(1e-3):
        raise RuntimeError("within")
    with StopSignals():
        os.kill(os.getpid(), signal.SIGTERM)
    assert seen == []
    os.kill(os.getpid(), signal.SIGTERM)
    assert seen == [signal.SIGTERM]


@pytest.mark.parametrize(("first", "second"), [(signal.SIGTERM, signal.SIGINT), (signal.SIGINT, signal.SIGTERM)])
def test_the_second_signal_ends_a_process_at_once_also_within_c(first, second):
    program = Program(f"with StopSignals():\n    print('ready', flush=True)\n    {WITHIN_C}")
    program.wait_for("ready")
    program.process.send_signal(first)
    assert program.process.stderr is not None
    assert program.process.stderr.readline() == f"{first.name}: ends; a second signal ends at once\n"
    time.sleep(0.6)  # what comes within half a second is one signal
    program.process.send_signal(second)
    assert program.end() == (STATUS[second], f"{second.name} again: ended at once; the same command continues\n")


def test_the_end_of_the_grace_period_ends_a_process_with_the_cause_and_all_stacks():
    program = Program(
        f"""
def waits_for_ever():
    {WITHIN_C}
with StopSignals(0.1, lambda: "step 7 for 30 s"):
    print("ready", flush=True)
    waits_for_ever()
""",
        RANK="3",
    )
    program.wait_for("ready")
    program.process.send_signal(signal.SIGTERM)
    status, stderr = program.end()
    assert status == 1
    assert stderr.startswith("rank 3: not ended within runtime.grace_period_in_s (0.1 s) of SIGTERM: step 7 for 30 s. ")
    assert "in waits_for_ever" in stderr
    assert "in _end_of_grace" in stderr
    assert stderr.endswith("rank 3: ended at once; the same command continues\n")


def test_the_grace_period_ends_a_process_also_where_nobody_takes_what_it_says():
    program = Program(f"with StopSignals(0.1):\n    print('ready', flush=True)\n    {WITHIN_C}")
    program.wait_for("ready")
    assert program.process.stderr is not None
    program.process.stderr.close()
    try:
        program.process.send_signal(signal.SIGTERM)
        assert program.process.wait(60) == 1
    finally:
        program.process.kill()


@pytest.mark.parametrize("rank", [0, 1])
def test_before_training_a_signal_ends_a_program_at_once(rank):
    program = Program(f"end_at_signals()\nprint('ready', flush=True)\n{WITHIN_C}", RANK=str(rank))
    program.wait_for("ready")
    program.process.send_signal(signal.SIGINT)
    told = ["rank 0: ended by SIGINT before training; the same command starts again\n", ""]
    assert program.end() == (130, told[rank])


def test_in_a_program_a_signal_at_its_end_does_not_cut_it_off():
    """What comes twice, from a service manager and through torchrun, may come again when training has ended."""
    program = Program(
        """
end_at_signals()
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
    assert "ended" not in stderr
