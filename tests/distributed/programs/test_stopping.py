"""Signals to torchrun and its workers, as a cluster or a person sends them, and ranks that are lost."""

import os
import signal
import time
from pathlib import Path

from common.checkpointing.directory import complete_steps
from tests.support.programs import TIMEOUT_IN_S, started, wait_for_line, worker_pids
from tests.support.runs import small_run

# Longer than any of these tests.
ENDLESS = ("training.num_train_steps=100000", "training.num_epochs=null", "training.eval_every_n=0")


def test_a_signal_to_torchrun_and_all_workers_ends_with_a_checkpoint(recap_data: Path, tmp_path: Path) -> None:
    """Workers get it twice, as from a service manager that signals a whole control group."""
    with started(small_run(recap_data, tmp_path, *ENDLESS), 2) as launcher:
        wait_for_line(launcher, "step 6 of")
        for pid in [*worker_pids(launcher), launcher.pid]:
            os.kill(pid, signal.SIGTERM)
        stdout, stderr = launcher.communicate(timeout=TIMEOUT_IN_S)
    assert launcher.returncode == 1  # torchrun's own
    assert "SignalException: " in stderr
    assert "ended at once" not in stderr
    assert "LostRankError" not in stderr
    last_step = complete_steps(tmp_path / "checkpoints")[-1]
    assert f"stopped by SIGTERM after step {last_step}; the same command continues" in stderr
    assert f"checkpoints    {tmp_path}/checkpoints" in stdout


def test_a_second_signal_to_torchrun_ends_workers_at_once(recap_data: Path, tmp_path: Path) -> None:
    """Though one of them hangs, and the other waits for it."""
    with started(small_run(recap_data, tmp_path, *ENDLESS), 2, "--shutdown-timeout=2") as launcher:
        wait_for_line(launcher, "step 6 of")
        os.kill(worker_pids(launcher)[1], signal.SIGSTOP)
        os.kill(launcher.pid, signal.SIGINT)
        wait_for_line(launcher, "rank 0: SIGINT: ends within 25 s; a second signal ends at once")
        time.sleep(0.6)  # what comes within half a second is one signal
        os.kill(launcher.pid, signal.SIGINT)
        _, stderr = launcher.communicate(timeout=TIMEOUT_IN_S)
    assert launcher.returncode == 1
    assert "rank 0: SIGTERM again: ended at once; the same command continues" in stderr  # torchrun makes it SIGTERM


def test_a_rank_that_waits_for_one_that_hangs_ends_within_the_grace_period(recap_data: Path, tmp_path: Path) -> None:
    arguments = small_run(recap_data, tmp_path, *ENDLESS, "runtime.grace_period_in_s=1")
    with started(arguments, 2, "--shutdown-timeout=3") as launcher:
        wait_for_line(launcher, "step 6 of")
        os.kill(worker_pids(launcher)[1], signal.SIGSTOP)
        os.kill(launcher.pid, signal.SIGTERM)
        told = wait_for_line(launcher, "rank 0: ended at once; the same command continues")
        launcher.communicate(timeout=TIMEOUT_IN_S)
    assert launcher.returncode == 1
    assert "rank 0: not ended within runtime.grace_period_in_s (1 s) of SIGTERM: " in told
    assert "core/custom_training_loop.py" in told
    assert "in train" in told
    assert "Unable to shutdown" not in told
