"""Trains in directories on file systems of other kinds, and in one directory at the same time."""

import errno
import os
import signal
from pathlib import Path

import pytest

from common.checkpointing.directory import complete_steps
from common.tracking.metrics_file import read_metrics
from tests.support.preload import preloaded
from tests.support.programs import TIMEOUT_IN_S, finish, started, wait_for_line
from tests.support.runs import small_run

pytestmark = pytest.mark.faults

NO_EVALUATION = ("training.num_epochs=null", "training.eval_every_n=0")
ENDLESS = ("training.num_train_steps=100000", *NO_EVALUATION)


@pytest.fixture
def save_dir(tmp_path: Path) -> Path:
    return tmp_path / "run"


def use(monkeypatch: pytest.MonkeyPatch, save_dir: Path, **faults: int) -> None:
    """Give the programs that are started from now on a file system with faults under save_dir."""
    for name, value in preloaded(faults, under=save_dir).items():
        monkeypatch.setenv(name, value)


def test_a_run_saves_without_fsync_of_directories(
    recap_data: Path, save_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, save_dir, fsync_directory=errno.EINVAL)
    ended = finish(small_run(recap_data, save_dir, *NO_EVALUATION), 2)
    assert ended.returncode == 0, ended.stderr
    assert complete_steps(save_dir / "checkpoints") == [4, 8, 12]
    assert ended.stderr.count("cannot synchronize a directory to disk") == 1


def test_a_directory_that_cannot_be_renamed_is_noticed_before_the_first_step(
    recap_data: Path, save_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, save_dir, rename_directory=errno.EXDEV)
    ended = finish(small_run(recap_data, save_dir, *NO_EVALUATION))
    assert ended.returncode == 2
    assert ended.stderr.count("its file system cannot rename a directory (Invalid cross-device link)") == 1
    assert "Traceback" not in ended.stderr
    assert "steps 1 to" not in ended.stderr


@pytest.mark.parametrize("number", [0, errno.ENOLCK])
def test_a_second_run_on_the_same_machine_is_refused_without_locks(
    recap_data: Path, save_dir: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    use(monkeypatch, save_dir, flock=number)
    arguments = small_run(recap_data, save_dir, *ENDLESS)
    with started(arguments) as first:
        output = wait_for_line(first, "saved .*checkpoints/8")
        assert "file locks do not work here" in output
        second = finish(arguments)
        assert second.returncode == 2
        assert f"another run is training here (process {first.pid} on " in second.stderr
        os.kill(first.pid, signal.SIGTERM)
        first.communicate(timeout=TIMEOUT_IN_S)
    assert first.returncode == 0
    steps = [measurement.step for measurement in read_metrics(save_dir / "metrics.jsonl")]
    assert steps == sorted(set(steps))


def test_a_run_ends_when_another_machine_has_claimed_its_directory(recap_data: Path, save_dir: Path) -> None:
    """The locks of NFS with local_lock hold on one machine only."""
    with started(small_run(recap_data, save_dir, *ENDLESS), 2) as run:
        wait_for_line(run, "saved .*checkpoints/8")
        (save_dir / ".lock.holder").write_text("process 7 on another-host, 0123 another-host:7:1:2:3\n")
        written = read_metrics(save_dir / "metrics.jsonl")
        _, stderr = run.communicate(timeout=TIMEOUT_IN_S)
    assert stderr.count(f"error: {save_dir}: process 7 on another-host has claimed this directory since") == 1
    assert "LostRankError" not in stderr
    assert "exitcode  : 2" in stderr
    # A line that was already being written may follow.
    assert len(read_metrics(save_dir / "metrics.jsonl")) - len(written) <= 1
