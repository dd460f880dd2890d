"""Finding complete checkpoints, removing unfinished ones, and deleting checkpoints."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from common.checkpointing.directory import complete_steps, delete_unless_held, find_checkpoints, remove_unfinished
from common.checkpointing.manifest import NoCheckpointError
from common.checkpointing.reader import CheckpointReader, read_tensors
from common.checkpointing.writer import write_checkpoint


def write(root: Path, step: int = 5) -> Path:
    return write_checkpoint(root, step, {"a": torch.arange(3.0)}, {})


def test_steps_come_from_listing_the_directory_in_numeric_order(tmp_path):
    for step in (9, 10, 2):
        write(tmp_path, step)
    (tmp_path / "11").mkdir()  # no manifest
    (tmp_path / "12").write_text("a file")
    (tmp_path / "best").mkdir()
    assert complete_steps(tmp_path) == [2, 9, 10]
    assert complete_steps(tmp_path / "nowhere") == []


def test_an_interrupted_save_is_invisible_and_can_be_removed(tmp_path):
    hidden = write(tmp_path).rename(tmp_path / ".writing-5")
    assert complete_steps(tmp_path) == []
    (tmp_path / "notes.txt").write_text("mine")
    remove_unfinished(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    assert not hidden.exists()
    remove_unfinished(tmp_path / "nowhere")


def test_a_path_can_be_a_checkpoint_a_directory_of_checkpoints_or_a_save_dir(tmp_path):
    root = tmp_path / "run/checkpoints"
    write(root, 40)
    write(root, 5)
    assert find_checkpoints(root / "5") == [root / "5"]
    assert find_checkpoints(root) == find_checkpoints(root.parent) == [root / "5", root / "40"]


def test_the_error_for_no_checkpoint_says_what_is_there_instead(tmp_path):
    (tmp_path / "empty/.writing-5").mkdir(parents=True)
    for path, facts in (
        (tmp_path / "nowhere", ["no such directory", str(Path.cwd())]),
        (tmp_path, [f"no complete checkpoint in {tmp_path}"]),
        (tmp_path / "empty", [f"no complete checkpoint in {tmp_path}/empty", ".writing-5"]),
    ):
        with pytest.raises(NoCheckpointError) as caught:
            find_checkpoints(path)
        message = str(caught.value)
        assert message.startswith(f"{path}: ")
        assert all(fact in message for fact in [*facts, "save_dir"])


HOLDER = """
import sys
from pathlib import Path
from common.checkpointing.reader import CheckpointReader
checkpoint = CheckpointReader(Path(sys.argv[1]))
print("open", flush=True)
sys.stdin.read()
"""


@pytest.mark.faults
def test_a_checkpoint_is_not_deleted_until_its_reader_is_killed(tmp_path):
    path = write(tmp_path)
    arguments = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "open\n"
        with CheckpointReader(path):  # other readers can open it too
            assert not delete_unless_held(path)
        assert not delete_unless_held(path)
        assert read_tensors(path)["a"].tolist() == [0, 1, 2]
        reader.kill()
    assert delete_unless_held(path)
    assert list(tmp_path.iterdir()) == []
