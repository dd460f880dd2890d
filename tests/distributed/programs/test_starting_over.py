"""Starts over with --overwrite_save_dir, and lets a supervisor repeat the command."""

import os
import re
import signal
import sys
from pathlib import Path

import pytest

from common.checkpointing.directory import complete_steps
from tests.support.programs import (
    RECAP,
    TIMEOUT_IN_S,
    TWHIN,
    finish,
    finish_with_rank_logs,
    started_command,
    wait_for_line,
    worker_pids,
)
from tests.support.runs import small_run, small_twhin_run

pytestmark = pytest.mark.faults

NO_EVALUATION = ("training.num_epochs=null", "training.eval_every_n=0")
OVERWRITE = "--overwrite_save_dir"


def first_steps(output: str) -> list[int]:
    """Return the first step of each attempt in the output."""
    return [int(step) for step in re.findall(r"steps (\d+) to", output)]


# Without an id, torchrun gives all launches the id "none", unless it is standalone.
@pytest.mark.parametrize("options", [(), ("--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0")])
def test_a_restart_by_torchrun_continues(recap_data: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    arguments = [*small_run(recap_data, tmp_path, "training.num_train_steps=100000", *NO_EVALUATION), OVERWRITE]
    launcher_command = [sys.executable, "-m", "torch.distributed.run", *(options or ("--standalone",))]
    command = [*launcher_command, "--nproc-per-node", "2", "--max-restarts", "1", "-m", RECAP, *arguments]
    with started_command(command) as launcher:
        output = wait_for_line(launcher, "saved .*checkpoints/12")
        os.kill(worker_pids(launcher)[0], signal.SIGKILL)
        output += wait_for_line(launcher, f"{OVERWRITE} has no effect: this launch")
        output += wait_for_line(launcher, r"steps \d+ to")
        wait_for_line(launcher, "saved ")
        assert 12 in complete_steps(tmp_path / "checkpoints")
        os.kill(launcher.pid, signal.SIGTERM)
        _, stderr = launcher.communicate(timeout=TIMEOUT_IN_S)
    fresh, resumed = first_steps(output)
    assert fresh == 1
    assert resumed >= 13
    assert re.search(
        rf"stopped by SIGTERM after step \d+; run the same command without {OVERWRITE} to continue", stderr
    )


def test_a_requeued_job_continues_and_the_next_command_in_it_starts_over(
    recap_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "17")

    def run(last_step: int) -> int:
        options = (f"training.num_train_steps={last_step}", *NO_EVALUATION)
        ended = finish([*small_run(recap_data, tmp_path, *options), OVERWRITE])
        assert ended.returncode == 0, ended.stderr
        (step,) = first_steps(ended.stderr)
        return step

    assert run(6) == 1
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert run(8) == 7
    assert run(4) == 1


def test_a_run_that_starts_over_does_not_take_pretrained_rows_from_what_it_deletes(
    twhin_data: Path, tmp_path: Path
) -> None:
    """A restart before its first checkpoint would find neither."""
    options = ("training.num_train_steps=4", *NO_EVALUATION)
    run = tmp_path / "run"
    assert finish(small_twhin_run(twhin_data, run, *options), module=TWHIN).returncode == 0
    pretrained = f"model.embeddings.tables[0].pretrained={{embedding_snapshot_uri: {run}, emb_name: user}}"
    arguments = [*small_twhin_run(twhin_data, run, *options, pretrained), OVERWRITE]
    launcher, (rank_0, rank_1) = finish_with_rank_logs(arguments, tmp_path / "logs", module=TWHIN)
    assert set(re.findall(r"exitcode +: (-?\d+)", launcher.stderr)) == {"2"}
    assert f"error: pretrained rows of the table user: {run}/checkpoints/4 is in the save_dir" in rank_0
    assert "Traceback" not in rank_0 + rank_1
    assert complete_steps(run / "checkpoints") == [4]
