"""Hangs of real processes: each is reported once, and a process that makes progress is left alone."""

import subprocess
import sys

import pytest

from core.run.watchdog import Watchdog
from tests.support.root import ROOT


def program(body: str) -> "subprocess.Popen[str]":
    imports = "import ctypes, sys\nfrom core.run.watchdog import Watchdog\n"
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", imports + body], cwd=ROOT, stdin=pipe, stderr=pipe, text=True)


def read_until(process: "subprocess.Popen[str]", text: str) -> str:
    assert process.stderr is not None
    lines = [process.stderr.readline()]
    while text not in lines[-1]:
        assert lines[-1], lines
        lines.append(process.stderr.readline())
    return "".join(lines)


def test_each_hang_is_reported_once_with_its_step_and_the_stacks() -> None:
    process = program(
        """
def hangs():
    sys.stdin.readline()
with Watchdog(3, 0.2) as watchdog:
    for step in (7, 8):
        watchdog.beat("step", step)
        hangs()
    for step in range(9, 1000):
        watchdog.beat("step", step)
"""
    )
    assert process.stdin is not None
    try:
        reports = ""
        for step in (7, 8):
            reports += read_until(process, f"rank 3: step {step} for ") + read_until(process, "in <module>")
            process.stdin.write("continue\n")
            process.stdin.flush()
        _, rest = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0
    assert reports.count("runtime.hang_dump_after_in_s (0.2 s)") == reports.count("in hangs") == 2
    assert "rank 3" not in rest
    assert "Timeout" not in reports + rest


def test_a_hang_that_holds_the_interpreter_lock_is_reported() -> None:
    process = program(
        """
def hangs():
    libc, mutex = ctypes.PyDLL(None), ctypes.create_string_buffer(64)  # PyDLL: keeps the lock
    libc.pthread_mutex_lock(mutex)
    libc.pthread_mutex_lock(mutex)
with Watchdog(0, 0.1):
    hangs()
"""
    )
    try:
        report = read_until(process, "in <module>")
    finally:
        process.kill()
        process.communicate()
    assert report.startswith("Timeout (0:00:00.13")
    assert "in hangs" in report


@pytest.mark.parametrize("limit_in_s", [None, 60.0])
def test_the_situation_names_the_last_beat_and_the_time_since(
    limit_in_s: float | None, capfd: pytest.CaptureFixture[str]
) -> None:
    with Watchdog(0, limit_in_s) as watchdog:
        assert watchdog.situation().startswith("startup for 0.")
        watchdog.beat("step", 7)
        assert watchdog.situation().startswith("step 7 for 0.")
        watchdog.beat("reading checkpoints/4")
        assert watchdog.situation().startswith("reading checkpoints/4 for 0.")
    assert capfd.readouterr() == ("", "")
