import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from common.checkpointing.directory import complete_steps, delete_unless_held, find_checkpoints, remove_unfinished
from common.checkpointing.manifest import CheckpointError, NoCheckpointError
from common.checkpointing.reader import CheckpointReader, read_state, read_tensors
from common.checkpointing.writer import write_checkpoint
from tests.support.faults import forbidden, full_disk

# Floats whose decimal forms are long, and integers beyond a double's.
VALUES: dict[str, Any] = {
    "floats": [0.1 + 0.2, 1 / 3, 5e-324, 1.7976931348623157e308, -0.0, 1e22, math.pi],
    "window": {"loss_sum": None, "steps": 3.0},
    "count": 2**60 + 1,
    "text": "Größe 🙂",
}


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "model.weight": torch.randn(7, 3, generator=generator),
        "model.half": torch.randn(5, generator=generator).to(torch.bfloat16),
        "model.count": torch.tensor(2**40 + 1),
        "model.strided": torch.randn(4, 6, generator=generator).t(),
        "model.odd": torch.tensor([math.nan, math.inf, -0.0, 1e-45]),
        "model.empty": torch.zeros(0, 3),
        "optimizer.step.weight": torch.tensor(3.0),
        "optimizer.parameter": torch.nn.Parameter(torch.ones(2)),
    }


def same_bits(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    def raw(tensor: torch.Tensor) -> tuple[torch.dtype, torch.Size, bytes]:
        tensor = tensor.detach().contiguous()
        content = tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
        return tensor.dtype, tensor.shape, content

    return {n: raw(t) for n, t in found.items()} == {n: raw(t) for n, t in expected.items()}


def write(root: Path, step: int = 5) -> Path:
    return write_checkpoint(root, step, tensors(), VALUES)


def test_what_was_written_is_read_back_bit_for_bit(tmp_path):
    path = write(tmp_path / "run" / "checkpoints")
    assert path == tmp_path / "run" / "checkpoints" / "5"
    assert same_bits(read_tensors(path), tensors())
    state = read_state(path)
    assert state == VALUES
    assert math.copysign(1, state["floats"][4]) == -1
    assert complete_steps(path.parent) == [5]
    assert [p.name for p in path.parent.iterdir()] == ["5"]


def test_tensors_are_read_by_prefix(tmp_path):
    found = read_tensors(write(tmp_path), "optimizer.")
    assert same_bits(found, {"step.weight": torch.tensor(3.0), "parameter": torch.ones(2)})


def test_values_that_json_lacks_are_refused_before_anything_is_visible(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_checkpoint(tmp_path, 5, tensors(), {"loss": math.nan})
    assert complete_steps(tmp_path) == []


def test_steps_are_found_by_looking_in_the_order_of_numbers(tmp_path):
    for step in (9, 10, 2):
        write_checkpoint(tmp_path, step, {"a": torch.ones(1)}, {})
    (tmp_path / "11").mkdir()  # no manifest
    (tmp_path / "12").write_text("a file")
    (tmp_path / "best").mkdir()
    assert complete_steps(tmp_path) == [2, 9, 10]
    assert complete_steps(tmp_path / "nowhere") == []


def test_what_was_interrupted_is_invisible_and_removed(tmp_path):
    aside = write(tmp_path).rename(tmp_path / ".writing-5")
    assert complete_steps(tmp_path) == []
    (tmp_path / "notes.txt").write_text("mine")
    remove_unfinished(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    assert not aside.exists()
    remove_unfinished(tmp_path / "nowhere")


def test_leftovers_of_the_same_step_do_not_get_into_a_new_checkpoint(tmp_path):
    for leftover in (".writing-5", "5"):
        (tmp_path / leftover).mkdir()
        (tmp_path / leftover / "__9_9.distcp").write_text("old")
    path = write(tmp_path)
    assert not (path / "__9_9.distcp").exists()
    assert same_bits(read_tensors(path), tensors())


@pytest.mark.parametrize("what", ["tensors", "values"])
def test_a_disk_that_refuses_is_one_clear_error_and_leaves_the_older_checkpoint(tmp_path, what):
    write(tmp_path, 4)
    big_tensors = {"a": torch.zeros(100_000 if what == "tensors" else 1)}
    big_values = {"a": "x" * (100_000 if what == "values" else 1)}
    with full_disk(65536), pytest.raises(CheckpointError) as raised:
        write_checkpoint(tmp_path, 5, big_tensors, big_values)
    told = f"{tmp_path / '5'}: the checkpoint can't be written: File too large. Complete checkpoints: [4]"
    assert str(raised.value) == told
    assert [path.name for path in tmp_path.iterdir()] == ["4"]
    assert same_bits(read_tensors(tmp_path / "4"), tensors())


def test_a_directory_that_forbids_is_told_with_its_name(tmp_path):
    write(tmp_path, 4)
    with forbidden(tmp_path), pytest.raises(CheckpointError) as raised:
        write(tmp_path)
    assert str(raised.value) == (
        f"{tmp_path / '5'}: the checkpoint can't be written: Permission denied: {tmp_path / '.writing-5'}. "
        "Complete checkpoints: [4]"
    )
    write(tmp_path)
    assert complete_steps(tmp_path) == [4, 5]


def test_a_root_that_is_a_file_is_a_clear_error(tmp_path):
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(CheckpointError, match=r"checkpoints/5: the checkpoint can't be written: Not a directory: "):
        write(tmp_path / "checkpoints")


def test_a_root_that_was_removed_is_made_again(tmp_path):
    write(tmp_path / "checkpoints", 4)
    shutil.rmtree(tmp_path / "checkpoints")
    assert same_bits(read_tensors(write(tmp_path / "checkpoints")), tensors())


def test_what_a_path_stands_for(tmp_path):
    root = tmp_path / "run/checkpoints"
    write(root, 40)
    write(root, 5)
    assert find_checkpoints(root / "5") == [root / "5"]
    assert find_checkpoints(root) == find_checkpoints(root.parent) == [root / "5", root / "40"]
    (tmp_path / "empty/.writing-5").mkdir(parents=True)
    advice = "; give the save_dir of a run, its checkpoints, or one of them"
    for path, found in (
        (tmp_path / "nowhere", f"no such directory (looked from {Path.cwd()})"),
        (tmp_path, f"no complete checkpoint in {tmp_path}"),
        (
            tmp_path / "empty",
            f"no complete checkpoint in {tmp_path}/empty; of saves that were interrupted or go on: .writing-5",
        ),
    ):
        with pytest.raises(NoCheckpointError) as raised:
            find_checkpoints(path)
        assert str(raised.value) == f"{path}: {found}{advice}"


HOLDER = """
import sys
from pathlib import Path
from common.checkpointing.reader import CheckpointReader
checkpoint = CheckpointReader(Path(sys.argv[1]))
print("open", flush=True)
sys.stdin.read()
"""


def test_what_is_being_read_is_not_deleted_until_its_reader_is_killed(tmp_path):
    path = write(tmp_path)
    arguments = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "open\n"
        with CheckpointReader(path):  # others may read it, too
            assert not delete_unless_held(path)
        assert not delete_unless_held(path)
        assert same_bits(read_tensors(path), tensors())
        reader.kill()
    assert delete_unless_held(path)
    assert list(tmp_path.iterdir()) == []
