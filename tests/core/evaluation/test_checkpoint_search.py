"""Directories that appear, change and vanish during a search."""

import os
import shutil
from pathlib import Path

import pytest

from core.evaluation.checkpoint_search import CheckpointSearch


def create(root: Path, step: int, content: str = "whole") -> Path:
    """Write a checkpoint as a save does: under a hidden name, which is then renamed."""
    hidden = root / f".writing-{step}"
    hidden.mkdir()
    for name in ("data", "manifest.json"):
        (hidden / name).write_text(content)
    return hidden.rename(root / str(step))


def find_and_finish(search: CheckpointSearch, *, is_damaged: bool = False) -> int | None:
    """Return the step of the next checkpoint, which is then done."""
    checkpoint = search.find()
    if checkpoint is None:
        return None
    search.done(checkpoint, is_damaged=is_damaged)
    return checkpoint.step


def test_each_checkpoint_is_found_once_in_the_order_of_steps(tmp_path: Path) -> None:
    search = CheckpointSearch(tmp_path / "checkpoints")
    assert find_and_finish(search) is None
    (tmp_path / "checkpoints").mkdir()
    for step in (20, 100):
        create(tmp_path / "checkpoints", step)
    assert [find_and_finish(search) for _ in range(3)] == [20, 100, None]
    create(tmp_path / "checkpoints", 3)
    assert [find_and_finish(search) for _ in range(2)] == [3, None]


def test_a_checkpoint_that_is_not_done_is_found_again(tmp_path: Path) -> None:
    create(tmp_path, 4)
    search = CheckpointSearch(tmp_path)
    assert search.find() == search.find() is not None
    shutil.rmtree(tmp_path / "4")
    assert search.find() is None


@pytest.mark.parametrize("is_damaged", [False, True])
def test_a_checkpoint_that_is_recreated_is_found_again(tmp_path: Path, is_damaged: bool) -> None:
    search = CheckpointSearch(tmp_path)
    first = create(tmp_path, 4)
    assert [find_and_finish(search, is_damaged=is_damaged) for _ in range(2)] == [4, None]
    first.rename(tmp_path / "away")  # keeps its inode, so that the new directory gets another one
    create(tmp_path, 4)
    assert [find_and_finish(search) for _ in range(2)] == [4, None]


def test_a_damaged_checkpoint_is_found_again_once_its_files_are_replaced(tmp_path: Path) -> None:
    search = CheckpointSearch(tmp_path)
    data = create(tmp_path, 4, "torn") / "data"
    assert [find_and_finish(search, is_damaged=True) for _ in range(2)] == [4, None]
    data.write_text("whole")
    assert [find_and_finish(search) for _ in range(2)] == [4, None]
    os.utime(data)  # does not matter for a checkpoint that was evaluated
    assert find_and_finish(search) is None
