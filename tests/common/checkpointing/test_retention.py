import logging
from pathlib import Path

import pytest
import torch

from common.checkpointing.directory import complete_steps, remove_unfinished
from common.checkpointing.manifest import CheckpointError
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


def test_a_checkpoint_is_due_after_every_nth_step():
    policy = CheckpointRetention(Path("unused"), 3, None)
    assert [step for step in range(1, 11) if policy.is_due(step)] == [3, 6, 9]


def test_the_latest_is_the_newest_complete_one(tmp_path):
    policy = CheckpointRetention(tmp_path / "checkpoints", 1, None)
    assert policy.latest() is None
    write(policy.root, 9, 10)
    (policy.root / "11").mkdir()
    assert policy.latest() == policy.root / "10"


def newest(policy: CheckpointRetention) -> Path | None:
    checkpoint = policy.open_newest(ALONE)
    if checkpoint is None:
        return None
    with checkpoint:
        return checkpoint.path


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path, caplog):
    policy = CheckpointRetention(tmp_path / "checkpoints", 1, None)
    assert newest(policy) is None
    write(policy.root, 8, 9, 10)
    assert newest(policy) == policy.root / "10"
    flip_a_bit(policy.root / "10/__0_0.distcp")
    (policy.root / "9/state.json").unlink()
    assert newest(policy) == policy.root / "8"
    assert [record.levelname for record in caplog.records] == ["ERROR"] * 2
    assert f"{policy.root}/10/__0_0.distcp: damaged checkpoint" in caplog.messages[0]
    assert f"{policy.root}/9/state.json: damaged checkpoint: the file is missing" in caplog.messages[1]
    flip_a_bit(policy.root / "8/__0_0.distcp")
    with pytest.raises(CheckpointError, match=r"all checkpoints are damaged \(10, 9, 8\); put back a copy"):
        newest(policy)
    assert complete_steps(policy.root) == [8, 9, 10]


def test_one_of_a_newer_program_is_no_reason_to_lose_steps(tmp_path, monkeypatch):
    policy = CheckpointRetention(tmp_path, 1, None)
    write(tmp_path, 8)
    with monkeypatch.context() as newer:
        newer.setattr("common.checkpointing.manifest.FORMAT", 2)
        write(tmp_path, 9)
    with pytest.raises(CheckpointError, match=r"/9/manifest\.json: format 2 found, this program reads 1; use the ver"):
        newest(policy)


def test_rotation_counts_neither_damaged_ones_nor_later_ones(tmp_path):
    """A signal may have stopped the run after a step at which none is due, so that damaged ones are not made anew."""
    policy = CheckpointRetention(tmp_path, 1, 2)
    write(tmp_path, 4, 5, 7, 8)
    for step in (7, 8):
        flip_a_bit(tmp_path / f"{step}/__0_0.distcp")
    assert newest(policy) == tmp_path / "5"
    for step, left in ((6, [5, 6, 7, 8]), (8, [6, 8]), (9, [8, 9])):
        write(tmp_path, step)
        policy.rotate(step)
        assert complete_steps(tmp_path) == left
    assert int(read_tensors(tmp_path / "8")["step"]) == 8


def test_what_is_being_read_stays_until_a_later_rotation(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    policy = CheckpointRetention(tmp_path, 1, 2)
    write(tmp_path, 1, 2, 3)
    with CheckpointReader(tmp_path / "1"):
        policy.rotate(3)
        assert complete_steps(tmp_path) == [1, 2, 3]
        assert caplog.messages == [f"{tmp_path / '1'} is being read, and stays until a later checkpoint is saved"]
        write(tmp_path, 4)
        policy.rotate(4)
        assert complete_steps(tmp_path) == [1, 3, 4]
    policy.rotate(4)
    assert complete_steps(tmp_path) == [3, 4]


def test_nothing_is_deleted_where_the_newest_has_gone(tmp_path):
    write(tmp_path, 1, 2, 3)
    CheckpointRetention(tmp_path, 1, 2).rotate(4)
    assert complete_steps(tmp_path) == [1, 2, 3]


def measured(path: Path, **values: float | None) -> None:
    """Appends evaluations: step_<step>=value."""
    file = MetricsFile(path)
    for name, value in values.items():
        file.append(Measurement(int(name.removeprefix("step_")), "evaluate", "v", {"auroc": value}, {}))
    file.close()


def test_the_best_are_kept_beside_the_newest(tmp_path):
    root, metrics = tmp_path / "checkpoints", tmp_path / "metrics.jsonl"
    policy = CheckpointRetention(root, 1, 2, 5, BestSteps([metrics], "v", "auroc", "max", 2))
    for step, value in enumerate([0.5, 0.9, 0.6, 0.7, 0.1, 0.9, 0.2, None, 0.3], start=1):
        write(root, step)
        policy.rotate(step)
        measured(metrics, **{f"step_{step}": value})
    assert complete_steps(root) == [2, 5, 6, 8, 9]
    # As a restart finds it.
    CheckpointRetention(root, 1, 2, None, BestSteps([metrics], "v", "auroc", "min", 1)).rotate(9)
    assert complete_steps(root) == [5, 8, 9]


def test_where_the_best_are_not_known_nothing_is_deleted(tmp_path, caplog):
    root, metrics = tmp_path / "checkpoints", tmp_path / "metrics.jsonl"
    metrics.write_text("none\n")
    write(root, 1, 2, 3)
    CheckpointRetention(root, 1, 2, None, BestSteps([metrics], "v", "auroc", "max", 1)).rotate(3)
    assert complete_steps(root) == [1, 2, 3]
    (warning,) = caplog.messages
    assert warning.startswith(f"old checkpoints were not deleted: {metrics}, line 1: not a measurement")


@pytest.mark.parametrize(
    ("keep", "kept"), [(None, [2, 4, 6, 8, 10]), (2, [8, 10]), (4, [4, 6, 8, 10]), (9, [2, 4, 6, 8, 10])]
)
def test_the_newest_few_are_kept_and_whole(tmp_path, keep, kept):
    write(tmp_path, 2, 4, 6, 8, 10)
    CheckpointRetention(tmp_path, 2, keep).rotate(10)
    assert complete_steps(tmp_path) == kept
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(map(str, kept))
    assert [int(read_tensors(tmp_path / str(step))["step"]) for step in kept] == kept


def test_every_so_many_steps_one_is_kept_for_good(tmp_path):
    policy = CheckpointRetention(tmp_path, 2, 2, 6)
    for step in range(2, 21, 2):
        write(tmp_path, step)
        policy.rotate(step)
    assert complete_steps(tmp_path) == [6, 12, 18, 20]


def test_files_of_others_stay(tmp_path):
    write(tmp_path, 1, 2, 3)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "best").mkdir()
    (tmp_path / "0").mkdir()  # not complete: no checkpoint
    CheckpointRetention(tmp_path, 1, 2).rotate(3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "2", "3", "best", "notes.txt"]


def test_a_delete_that_fails_is_a_warning_and_the_others_are_deleted_all_the_same(tmp_path, caplog):
    write(tmp_path, 1, 2, 3, 4, 5)
    (tmp_path / ".writing-1-deleting").write_text("a file in the way")
    elsewhere = (tmp_path / "2").rename(tmp_path / "elsewhere")
    (tmp_path / "2").symlink_to(elsewhere)  # can't be deleted as a directory
    policy = CheckpointRetention(tmp_path, 1, 2)
    with caplog.at_level(logging.WARNING):
        policy.rotate(5)
    assert complete_steps(tmp_path) == [1, 4, 5]
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
    assert f"old checkpoint {tmp_path / '1'} could not be deleted" in caplog.text
    assert int(read_tensors(elsewhere)["step"]) == 2
    assert policy.latest() == tmp_path / "5"


def test_a_half_deleted_checkpoint_is_never_taken_for_a_complete_one(tmp_path):
    """What a kill between rename and delete leaves."""
    write(tmp_path, 1, 2)
    (tmp_path / "1").rename(tmp_path / ".writing-1-deleting")
    assert complete_steps(tmp_path) == [2]
    remove_unfinished(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["2"]
