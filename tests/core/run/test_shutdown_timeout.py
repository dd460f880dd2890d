import subprocess
import sys
from pathlib import Path

import pytest

from core.run.shutdown_timeout import warn_if_killed_early
from tests.support.root import ROOT


@pytest.fixture(autouse=True)
def under_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PET_SHUTDOWN_TIMEOUT", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")


def warnings(caplog: pytest.LogCaptureFixture, grace_period_in_s: float) -> list[str]:
    warn_if_killed_early(grace_period_in_s)
    return caplog.messages


@pytest.mark.parametrize("grace_period_in_s", [30.0, 60.0])
def test_a_grace_period_that_torchrun_does_not_allow_is_a_warning(caplog, grace_period_in_s):
    (message,) = warnings(caplog, grace_period_in_s)
    assert f"grace_period_in_s is {grace_period_in_s:g}, but torchrun kills its workers 30 s after a signal" in message
    assert "--shutdown-timeout" in message


def test_a_shorter_grace_period_is_not(caplog):
    assert warnings(caplog, 25.0) == []


def test_torchrun_is_needed_for_a_warning(caplog, monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    assert warnings(caplog, 3600.0) == []


@pytest.mark.parametrize("name", ["PET_SHUTDOWN_TIMEOUT", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"])
def test_the_environment_can_set_the_limit(caplog, monkeypatch, name):
    monkeypatch.setenv(name, "120")
    assert warnings(caplog, 119.0) == []
    assert "120 s" in warnings(caplog, 120.0)[0]


WORKER = "import logging; from core.run.shutdown_timeout import *; logging.basicConfig(); warn_if_killed_early(60)"
TORCHRUN = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[-1]], check=True)"


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="needs /proc")
@pytest.mark.parametrize(
    ("option", "warns"),
    [
        ([], True),
        (["--shutdown-timeout", "61"], False),
        (["--shutdown_timeout=61"], False),
        (["--shutdown-timeout=45"], True),
    ],
)
def test_the_option_of_the_parent_process_is_found(option, warns):
    command = [sys.executable, "-c", TORCHRUN, "--standalone", *option, WORKER]
    errors = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60).stderr
    assert errors.count("WARNING") == warns, errors
    assert ("45 s" in errors) == ("--shutdown-timeout=45" in option)
