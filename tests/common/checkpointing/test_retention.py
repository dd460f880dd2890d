"""Scheduling saves, choosing the checkpoint to resume from, and rotation."""

import logging
from pathlib import Path

import pytest
import torch

from common.checkpointing.directory import complete_steps, remove_unfinished
from common.checkpointing.manifest import CheckpointError, DamagedCheckpointError
from common.checkpointing.reader import CheckpointReader, read_tensors
from common.checkpointing.retention import CheckpointRetention
from common.checkpointing.writer import write_checkpoint
from common.tracking.measurement import Measurement
from common.tracking.metrics_file import MetricsFile
from core.checkpoints.best import BestSteps
from tests.support.faults import flip_a_bit
from tests.support.toy import ALONE


def write(root: Path, *steps: int) -> None:
    for step in steps:
        write_checkpoint(root, step, {"step": torch.tensor(step)}, {})


def test_a_save_is_due_after_every_nth_step():
    retention = CheckpointRetention(Path("unused"), 3, None)
    assert [step for step in range(1, 11) if retention.is_due(step)] == [3, 6, 9]


def test_latest_returns_the_newest_complete_checkpoint(tmp_path):
    retention = CheckpointRetention(tmp_path / "checkpoints", 1, None)
    assert retention.latest() is None
    write(retention.root, 9, 10)
    (retention.root / "11").mkdir()
    assert retention.latest() == retention.root / "10"


def newest(retention: CheckpointRetention) -> Path | None:
    """Load the newest intact checkpoint as a resume does, and return its path."""
    while (checkpoint := retention.open_newest(ALONE)) is not None:
        with checkpoint:
            try:
                checkpoint.tensors()
            except DamagedCheckpointError as error:
                retention.reject(checkpoint.path, error)
            else:
                return checkpoint.path
    return None


def test_a_damaged_checkpoint_is_logged_and_the_previous_one_is_used(tmp_path, caplog):
    retention = CheckpointRetention(tmp_path / "checkpoints", 1, None)
    assert newest(retention) is None
    write(retention.root, 8, 9, 10)
    assert newest(retention) == retention.root / "10"
    flip_a_bit(retention.root / "10/tensors-0.bin")
    (retention.root / "9/state.json").unlink()
    assert newest(retention) == retention.root / "8"
    errors = [record for record in caplog.records if record.name == "common.checkpointing.retention"]
    assert [record.levelname for record in errors] == ["ERROR"] * 2
    assert f"{retention.root}/10/tensors-0.bin: damaged checkpoint" in errors[0].getMessage()
    assert f"{retention.root}/9/state.json: damaged checkpoint: " in errors[1].getMessage()
    flip_a_bit(retention.root / "8/tensors-0.bin")
    with pytest.raises(CheckpointError, match=r"all checkpoints are damaged \(10, 9, 8\).*--overwrite_save_dir"):
        newest(retention)
    assert complete_steps(retention.root) == [8, 9, 10]


def test_a_checkpoint_of_a_newer_program_is_an_error_so_that_no_steps_are_lost(tmp_path, monkeypatch):
    retention = CheckpointRetention(tmp_path, 1, None)
    write(tmp_path, 8)
    with monkeypatch.context() as newer:
        newer.setattr("common.checkpointing.manifest.FORMAT", 3)
        write(tmp_path, 9)
    with pytest.raises(CheckpointError, match=r"/9/manifest\.json: .*format is 3, .* reads the formats 1 and 2"):
        newest(retention)


def test_rotation_does_not_count_damaged_or_later_checkpoints(tmp_path):
    """A signal can stop the run after any step, so that a save does not always replace a damaged checkpoint."""
    retention = CheckpointRetention(tmp_path, 1, 2)
    write(tmp_path, 4, 5, 7, 8)
    for step in (7, 8):
        flip_a_bit(tmp_path / f"{step}/tensors-0.bin")
    assert newest(retention) == tmp_path / "5"
    for step, remaining in ((6, [5, 6, 7, 8]), (8, [6, 8]), (9, [8, 9])):
        write(tmp_path, step)
        retention.rotate(step)
        assert complete_steps(tmp_path) == remaining
    assert int(read_tensors(tmp_path / "8")["step"]) == 8


def test_a_checkpoint_that_is_being_read_stays_until_a_later_rotation(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    retention = CheckpointRetention(tmp_path, 1, 2)
    write(tmp_path, 1, 2, 3)
    with CheckpointReader(tmp_path / "1"):
        retention.rotate(3)
        assert complete_steps(tmp_path) == [1, 2, 3]
        [message] = caplog.messages
        assert message.startswith(f"{tmp_path / '1'} is being read")
        write(tmp_path, 4)
        retention.rotate(4)
        assert complete_steps(tmp_path) == [1, 3, 4]
    retention.rotate(4)
    assert complete_steps(tmp_path) == [3, 4]


def test_nothing_is_deleted_if_the_newest_checkpoint_is_missing(tmp_path):
    write(tmp_path, 1, 2, 3)
    CheckpointRetention(tmp_path, 1, 2).rotate(4)
    assert complete_steps(tmp_path) == [1, 2, 3]


def measured(path: Path, **values: float | None) -> None:
    """Append evaluations, given as step_<step>=value."""
    file = MetricsFile(path)
    for name, value in values.items():
        file.append(Measurement(int(name.removeprefix("step_")), "evaluate", "v", {"auroc": value}, {}))
    file.close()


def test_the_best_checkpoints_are_kept_in_addition_to_the_newest(tmp_path):
    root, metrics = tmp_path / "checkpoints", tmp_path / "metrics.jsonl"
    retention = CheckpointRetention(root, 1, 2, 5, BestSteps([metrics], "v", "auroc", "max", 2))
    for step, value in enumerate([0.5, 0.9, 0.6, 0.7, 0.1, 0.9, 0.2, None, 0.3], start=1):
        write(root, step)
        retention.rotate(step)
        measured(metrics, **{f"step_{step}": value})
    assert complete_steps(root) == [2, 5, 6, 8, 9]
    # The same directory after a restart.
    CheckpointRetention(root, 1, 2, None, BestSteps([metrics], "v", "auroc", "min", 1)).rotate(9)
    assert complete_steps(root) == [5, 8, 9]


def test_nothing_is_deleted_if_the_best_checkpoints_are_unknown(tmp_path, caplog):
    root, metrics = tmp_path / "checkpoints", tmp_path / "metrics.jsonl"
    metrics.write_text("none\n")
    write(root, 1, 2, 3)
    CheckpointRetention(root, 1, 2, None, BestSteps([metrics], "v", "auroc", "max", 1)).rotate(3)
    assert complete_steps(root) == [1, 2, 3]
    [warning] = caplog.messages
    assert warning.startswith("could not delete old checkpoints: ")
    assert f"{metrics}, line 1" in warning


@pytest.mark.parametrize(
    ("keep", "kept"), [(None, [2, 4, 6, 8, 10]), (2, [8, 10]), (4, [4, 6, 8, 10]), (9, [2, 4, 6, 8, 10])]
)
def test_the_newest_checkpoints_are_kept_intact(tmp_path, keep, kept):
    write(tmp_path, 2, 4, 6, 8, 10)
    CheckpointRetention(tmp_path, 2, keep).rotate(10)
    assert complete_steps(tmp_path) == kept
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(map(str, kept))
    assert [int(read_tensors(tmp_path / str(step))["step"]) for step in kept] == kept


def test_the_checkpoint_of_every_nth_step_is_kept_permanently(tmp_path):
    retention = CheckpointRetention(tmp_path, 2, 2, 6)
    for step in range(2, 21, 2):
        write(tmp_path, step)
        retention.rotate(step)
    assert complete_steps(tmp_path) == [6, 12, 18, 20]


def test_other_files_stay(tmp_path):
    write(tmp_path, 1, 2, 3)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "best").mkdir()
    (tmp_path / "0").mkdir()  # incomplete, so not a checkpoint
    CheckpointRetention(tmp_path, 1, 2).rotate(3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "2", "3", "best", "notes.txt"]


def test_a_failed_delete_is_a_warning_and_the_other_checkpoints_are_deleted(tmp_path, caplog):
    write(tmp_path, 1, 2, 3, 4, 5)
    (tmp_path / ".writing-1-deleting").write_text("a file in the way")
    elsewhere = (tmp_path / "2").rename(tmp_path / "elsewhere")
    (tmp_path / "2").symlink_to(elsewhere)  # rmtree refuses a symbolic link
    retention = CheckpointRetention(tmp_path, 1, 2)
    with caplog.at_level(logging.WARNING):
        retention.rotate(5)
    assert complete_steps(tmp_path) == [1, 4, 5]
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
    assert f"could not delete the old checkpoint {tmp_path / '1'}" in caplog.text
    assert int(read_tensors(elsewhere)["step"]) == 2
    assert retention.latest() == tmp_path / "5"


def test_a_half_deleted_checkpoint_does_not_count_as_complete(tmp_path):
    """A process was killed between the rename and the delete."""
    write(tmp_path, 1, 2)
    (tmp_path / "1").rename(tmp_path / ".writing-1-deleting")
    assert complete_steps(tmp_path) == [2]
    remove_unfinished(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["2"]


def test_checkpoints_that_belong_to_another_run_by_now_are_not_deleted(tmp_path):
    is_ours = iter([True, False])
    retention = CheckpointRetention(tmp_path, 1, 2, may_write=lambda: next(is_ours))
    write(tmp_path, 1, 2, 3, 4)
    retention.rotate(4)
    assert complete_steps(tmp_path) == [2, 3, 4]
