import logging
from pathlib import Path

import pytest
import torch

from common.checkpointing.policy import CheckpointPolicy
from common.checkpointing.storage import (
    CheckpointError,
    complete_steps,
    read_tensors,
    remove_unfinished,
    write_checkpoint,
)


def write(root: Path, *steps: int) -> None:
    for step in steps:
        write_checkpoint(root, step, {"step": torch.tensor(step)}, {})


def test_a_checkpoint_is_due_after_every_nth_step():
    policy = CheckpointPolicy(Path("unused"), 3, None)
    assert [step for step in range(1, 11) if policy.is_due(step)] == [3, 6, 9]


def test_the_latest_is_the_newest_complete_one(tmp_path):
    policy = CheckpointPolicy(tmp_path / "checkpoints", 1, None)
    assert policy.latest() is None
    write(policy.root, 9, 10)
    (policy.root / "11").mkdir()
    assert policy.latest() == policy.root / "10"


def damage(checkpoint: Path) -> None:
    file = checkpoint / "__0_0.distcp"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path, caplog):
    policy = CheckpointPolicy(tmp_path / "checkpoints", 1, None)
    assert policy.newest_undamaged() is None
    write(policy.root, 8, 9, 10)
    assert policy.newest_undamaged() == policy.root / "10"
    damage(policy.root / "10")
    (policy.root / "9/state.json").unlink()
    assert policy.newest_undamaged() == policy.root / "8"
    assert [record.levelname for record in caplog.records] == ["ERROR"] * 2
    assert f"{policy.root}/10/__0_0.distcp: damaged checkpoint" in caplog.messages[0]
    assert f"{policy.root}/9/state.json: damaged checkpoint: the file is missing" in caplog.messages[1]
    damage(policy.root / "8")
    with pytest.raises(CheckpointError, match=r"all checkpoints are damaged \(10, 9, 8\); put back a copy"):
        policy.newest_undamaged()
    assert complete_steps(policy.root) == [8, 9, 10]


@pytest.mark.parametrize(
    ("keep", "kept"), [(None, [2, 4, 6, 8, 10]), (2, [8, 10]), (4, [4, 6, 8, 10]), (9, [2, 4, 6, 8, 10])]
)
def test_the_newest_few_are_kept_and_whole(tmp_path, keep, kept):
    write(tmp_path, 2, 4, 6, 8, 10)
    CheckpointPolicy(tmp_path, 2, keep).rotate()
    assert complete_steps(tmp_path) == kept
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(map(str, kept))
    assert [int(read_tensors(tmp_path / str(step))["step"]) for step in kept] == kept


def test_every_so_many_steps_one_is_kept_for_good(tmp_path):
    policy = CheckpointPolicy(tmp_path, 2, 2, 6)
    for step in range(2, 21, 2):
        write(tmp_path, step)
        policy.rotate()
    assert complete_steps(tmp_path) == [6, 12, 18, 20]


def test_files_of_others_stay(tmp_path):
    write(tmp_path, 1, 2, 3)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "best").mkdir()
    (tmp_path / "0").mkdir()  # not complete: no checkpoint
    CheckpointPolicy(tmp_path, 1, 2).rotate()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "2", "3", "best", "notes.txt"]


def test_a_delete_that_fails_is_a_warning_and_the_others_are_deleted_all_the_same(tmp_path, caplog):
    write(tmp_path, 1, 2, 3, 4, 5)
    (tmp_path / ".writing-1-deleting").write_text("a file in the way")
    elsewhere = (tmp_path / "2").rename(tmp_path / "elsewhere")
    (tmp_path / "2").symlink_to(elsewhere)  # can't be deleted as a directory
    policy = CheckpointPolicy(tmp_path, 1, 2)
    with caplog.at_level(logging.WARNING):
        policy.rotate()
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
