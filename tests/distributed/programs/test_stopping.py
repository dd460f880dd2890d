"""Sends signals to torchrun and its workers, as a cluster or a person does."""

import fcntl
import os
import pty
import signal
import subprocess
import termios
import time
from pathlib import Path

import pytest

from common.checkpointing.directory import complete_steps
from tests.support.programs import TIMEOUT_IN_S, command, started, wait_for_line, worker_pids
from tests.support.root import ROOT
from tests.support.runs import small_run

pytestmark = pytest.mark.faults

# More steps than any of these tests runs.
ENDLESS = ("training.num_train_steps=100000", "training.num_epochs=null", "training.eval_every_n=0")


def test_a_signal_to_torchrun_and_all_workers_stops_with_a_checkpoint(recap_data: Path, tmp_path: Path) -> None:
    """Workers receive it twice, as from a service manager that signals a whole control group."""
    with started(small_run(recap_data, tmp_path, *ENDLESS), 2) as launcher:
        wait_for_line(launcher, "step 6 of")
        for pid in [*worker_pids(launcher), launcher.pid]:
            os.kill(pid, signal.SIGTERM)
        stdout, stderr = launcher.communicate(timeout=TIMEOUT_IN_S)
    assert launcher.returncode == 1  # torchrun's own status
    assert "SignalException: " in stderr
    assert "exiting now" not in stderr
    assert "LostRankError" not in stderr
    last_step = complete_steps(tmp_path / "checkpoints")[-1]
    assert f"stopped by SIGTERM after step {last_step};" in stderr
    assert f"checkpoints    {tmp_path}/checkpoints" in stdout


def test_a_second_signal_to_torchrun_ends_the_workers_at_once(recap_data: Path, tmp_path: Path) -> None:
    """This holds even if one of them hangs and the other waits for it."""
    with started(small_run(recap_data, tmp_path, *ENDLESS), 2, "--shutdown-timeout=2") as launcher:
        wait_for_line(launcher, "step 6 of")
        os.kill(worker_pids(launcher)[1], signal.SIGSTOP)
        os.kill(launcher.pid, signal.SIGINT)
        wait_for_line(launcher, "rank 0: received SIGINT; stopping within 25 s. A second signal exits immediately.")
        time.sleep(0.6)  # signals within half a second count as one
        os.kill(launcher.pid, signal.SIGINT)
        _, stderr = launcher.communicate(timeout=TIMEOUT_IN_S)
    assert launcher.returncode == 1
    assert "rank 0: received SIGTERM again; exiting now." in stderr  # torchrun sends SIGTERM


def test_a_rank_that_waits_for_a_hanging_rank_ends_within_the_grace_period(recap_data: Path, tmp_path: Path) -> None:
    arguments = small_run(recap_data, tmp_path, *ENDLESS, "runtime.grace_period_in_s=1")
    with started(arguments, 2, "--shutdown-timeout=3") as launcher:
        wait_for_line(launcher, "step 6 of")
        os.kill(worker_pids(launcher)[1], signal.SIGSTOP)
        os.kill(launcher.pid, signal.SIGTERM)
        output = wait_for_line(launcher, "rank 0: exiting now")
        launcher.communicate(timeout=TIMEOUT_IN_S)
    assert launcher.returncode == 1
    assert "rank 0: did not stop within runtime.grace_period_in_s (1 s) of SIGTERM: " in output
    assert "core/custom_training_loop.py" in output
    assert "in train" in output
    assert "Unable to shutdown" not in output


def test_a_closed_terminal_stops_with_a_checkpoint(recap_data: Path, tmp_path: Path) -> None:
    """The kernel sends SIGHUP, and the process can no longer write to its standard streams."""
    terminal, end = pty.openpty()
    options = (*ENDLESS, "training.checkpoint_every_n=100000")
    process = subprocess.Popen(
        command(small_run(recap_data, tmp_path, *options), 1),
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=end,
        stdout=end,
        stderr=end,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(end, termios.TIOCSCTTY, 0),
    )
    try:
        os.close(end)
        metrics = tmp_path / "metrics.jsonl"
        while not (metrics.exists() and metrics.read_text()):
            assert process.poll() is None
            time.sleep(0.05)
        os.close(terminal)
        assert process.wait(TIMEOUT_IN_S) == 0
    finally:
        process.kill()
        process.wait()
    assert complete_steps(tmp_path / "checkpoints")
