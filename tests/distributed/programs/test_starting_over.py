"""Starts over with --overwrite_save_dir while a supervisor restarts processes, machines, jobs or containers."""

import os
import re
import signal
from collections.abc import Mapping
from pathlib import Path

import pytest

from common.checkpointing.directory import complete_steps
from tests.support.programs import TIMEOUT_IN_S, finish, started, wait_for_line, worker_pids
from tests.support.runs import small_run

pytestmark = pytest.mark.faults

ENDLESS = ("training.num_train_steps=100000", "training.num_epochs=null", "training.eval_every_n=0")
OVERWRITE = "--overwrite_save_dir"
SHORT = ("training.num_train_steps=6", "training.num_epochs=null", "training.eval_every_n=0")


def first_step(output: str) -> list[int]:
    """Return the first step of each attempt."""
    return [int(step) for step in re.findall(r"steps (\d+) to", output)]


def run(
    arguments: list[str], *, processes: int = 1, options: tuple[str, ...] = (), env: Mapping[str, str]
) -> list[int]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in env.items():
            patch.setenv(name, value)
        ended = finish(arguments, processes, *options)
    assert ended.returncode == 0, ended.stderr
    return first_step(ended.stderr)


def launch(arguments: list[str], *options: str, module: str = RECAP) -> list[str]:
    """Return the command of torchrun with one process and without --standalone, which would set an id."""
    return [sys.executable, "-m", "torch.distributed.run", *options, "-m", module, *arguments]


@pytest.mark.parametrize("options", [(), ("--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0")])
def test_a_restart_by_torchrun_continues(recap_data: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    """With a rendezvous of c10d and no id, the id of all launches is "none"."""
    arguments = [*small_run(recap_data, tmp_path, *ENDLESS), OVERWRITE]
    with started(arguments, 2, "--max-restarts", "1", *options) as launcher:
        output = wait_for_line(launcher, "step 9 of")
        wait_for_line(launcher, "saved .*checkpoints/12")
        killed, other = worker_pids(launcher)
        os.kill(killed, signal.SIGKILL)
        output += wait_for_line(launcher, "saved .*checkpoints/20")
        assert other not in worker_pids(launcher)
        os.kill(launcher.pid, signal.SIGTERM)
        _, stderr = launcher.communicate(timeout=TIMEOUT_IN_S)
    assert first_step(output)[0] == 1
    assert first_step(output)[1] >= 13
    assert {4, 8, 12, 16, 20} <= set(complete_steps(tmp_path / "checkpoints"))
    stopped = next(line for line in stderr.splitlines() if "stopped by SIGTERM" in line)
    assert f"run the same command without {OVERWRITE} to continue" in stopped
