import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios

import pytest

from common.distributed.world import World
from common.tracking.measurement import Measurement
from core.loop.progress import ProgressReport
from tests.support.root import ROOT
from tests.support.toy import ALONE, CPU

LOGGED = Measurement(
    10,
    "train",
    None,
    {"loss": 0.25, "skipped_updates": 0},
    {"examples_per_second": 1234.4, "data_wait_share": 0.071},
)
PROGRAM = """
from core.loop.progress import ProgressReport
from tests.core.loop.test_progress import LOGGED
from tests.support.toy import ALONE
report = ProgressReport(ALONE, 0, 20)
for _ in range(10):
    report.step()
report.logged(LOGGED)
report.close()
"""


def test_without_a_terminal_progress_is_a_log_line(caplog: pytest.LogCaptureFixture) -> None:
    ProgressReport(ALONE, 0, 20).logged(LOGGED)
    assert caplog.messages == ["step 10 of 20: loss 0.25000, examples/s 1,234, waiting for data 7%"]


def test_skipped_updates_are_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    metrics = {"loss": None, "skipped_updates": 3}
    ProgressReport(ALONE, 0, 20).logged(Measurement(10, "train", None, metrics, LOGGED.timing))
    progress, warning = caplog.records
    assert "loss non-finite" in progress.getMessage()
    assert warning.levelname == "WARNING"
    assert "skipped 3 update(s) up to step 10" in warning.getMessage()


@pytest.mark.parametrize("columns", [0, 120])
def test_a_terminal_has_a_progress_bar_even_if_its_width_is_unknown(columns: int) -> None:
    master, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", PROGRAM], stderr=terminal, env=environment, timeout=60, check=True)
    os.close(terminal)
    shown = os.read(master, 100_000).decode()
    os.close(master)
    assert "10/20" in shown
    assert "loss=0.25000" in shown


def test_other_ranks_show_nothing(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    report = ProgressReport(World(1, 1, 2, CPU), 0, 20)
    report.step()
    report.logged(LOGGED)
    report.close()
    assert not caplog.messages
    assert capfd.readouterr() == ("", "")
