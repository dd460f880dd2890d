"""Directories that appear, change and vanish while they are looked for."""

import os
import shutil
from pathlib import Path

import pytest

from core.evaluation.checkpoint_search import CheckpointSearch


def make(root: Path, step: int, content: str = "whole") -> Path:
    """As a save does: written aside, then renamed."""
    aside = root / f".writing-{step}"
    aside.mkdir()
    for name in ("data", "manifest.json"):
        (aside / name).write_text(content)
    return aside.rename(root / str(step))


def found(search: CheckpointSearch, *, is_damaged: bool = False) -> int | None:
    """The step that is found, and is done then."""
    checkpoint = search.find()
    if checkpoint is None:
        return None
    search.done(checkpoint, is_damaged=is_damaged)
    return checkpoint.step


def test_each_is_found_once_in_the_order_of_the_steps(tmp_path: Path) -> None:
    search = CheckpointSearch(tmp_path / "checkpoints")
    assert found(search) is None
    (tmp_path / "checkpoints").mkdir()
    for step in (20, 100):
        make(tmp_path / "checkpoints", step)
    assert [found(search) for _ in range(3)] == [20, 100, None]
    make(tmp_path / "checkpoints", 3)
    assert [found(search) for _ in range(2)] == [3, None]


def test_one_that_is_not_done_is_found_again(tmp_path: Path) -> None:
    make(tmp_path, 4)
    search = CheckpointSearch(tmp_path)
    assert search.find() == search.find() is not None
    shutil.rmtree(tmp_path / "4")
    assert search.find() is None


@pytest.mark.parametrize("is_damaged", [False, True])
def test_one_that_is_made_anew_is_found_again(tmp_path: Path, is_damaged: bool) -> None:
    search = CheckpointSearch(tmp_path)
    first = make(tmp_path, 4)
    assert [found(search, is_damaged=is_damaged) for _ in range(2)] == [4, None]
    first.rename(tmp_path / "away")  # and its inode is not given to the next
    make(tmp_path, 4)
    assert [found(search) for _ in range(2)] == [4, None]


def test_a_damaged_one_whose_files_are_replaced_in_place_is_found_again(tmp_path: Path) -> None:
    search = CheckpointSearch(tmp_path)
    data = make(tmp_path, 4, "torn") / "data"
    assert [found(search, is_damaged=True) for _ in range(2)] == [4, None]
    data.write_text("whole")
    assert [found(search) for _ in range(2)] == [4, None]
    os.utime(data)  # no business of one that is done
    assert found(search) is None
