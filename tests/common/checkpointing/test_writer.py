"""Writing checkpoints: what is written, and what happens if the disk fails."""

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from common.checkpointing.directory import complete_steps
from common.checkpointing.manifest import CheckpointError
from common.checkpointing.reader import read_state, read_tensors
from common.checkpointing.writer import write_checkpoint
from tests.support.faults import forbidden, full_disk

# Floats with long decimal forms, and an integer that a double cannot represent.
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


def have_same_bits(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    def raw(tensor: torch.Tensor) -> tuple[torch.dtype, torch.Size, bytes]:
        tensor = tensor.detach().contiguous()
        content = tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
        return tensor.dtype, tensor.shape, content

    return {n: raw(t) for n, t in actual.items()} == {n: raw(t) for n, t in expected.items()}


def write(root: Path, step: int = 5) -> Path:
    return write_checkpoint(root, step, tensors(), VALUES)


def test_a_checkpoint_reads_back_bit_for_bit(tmp_path):
    path = write(tmp_path / "run" / "checkpoints")
    assert path == tmp_path / "run" / "checkpoints" / "5"
    assert have_same_bits(read_tensors(path), tensors())
    state = read_state(path)
    assert state == VALUES
    assert math.copysign(1, state["floats"][4]) == -1
    assert complete_steps(path.parent) == [5]
    assert [p.name for p in path.parent.iterdir()] == ["5"]


def test_a_value_that_json_cannot_represent_leaves_no_checkpoint(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_checkpoint(tmp_path, 5, tensors(), {"loss": math.nan})
    assert complete_steps(tmp_path) == []


def test_leftovers_of_the_same_step_are_not_in_a_new_checkpoint(tmp_path):
    for leftover in (".writing-5", "5"):
        (tmp_path / leftover).mkdir()
        (tmp_path / leftover / "tensors-9.bin").write_text("old")
    path = write(tmp_path)
    assert not (path / "tensors-9.bin").exists()
    assert have_same_bits(read_tensors(path), tensors())


@pytest.mark.parametrize("large", ["tensors", "values"])
def test_a_failed_write_is_one_error_and_keeps_the_older_checkpoint(tmp_path, large):
    write(tmp_path, 4)
    big_tensors = {"a": torch.zeros(100_000 if large == "tensors" else 1)}
    big_values = {"a": "x" * (100_000 if large == "values" else 1)}
    with full_disk(65536), pytest.raises(CheckpointError) as caught:
        write_checkpoint(tmp_path, 5, big_tensors, big_values)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / '5'}: ")
    assert "File too large" in message
    assert message.endswith("Complete checkpoints: [4]")
    assert [path.name for path in tmp_path.iterdir()] == ["4"]
    assert have_same_bits(read_tensors(tmp_path / "4"), tensors())


def test_the_error_names_a_directory_without_write_permission(tmp_path):
    write(tmp_path, 4)
    with forbidden(tmp_path), pytest.raises(CheckpointError) as caught:
        write(tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / '5'}: ")
    assert f"Permission denied: {tmp_path / '.writing-5'}." in message
    assert message.endswith("Complete checkpoints: [4]")
    write(tmp_path)
    assert complete_steps(tmp_path) == [4, 5]


def test_a_root_that_is_a_file_is_an_error(tmp_path):
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(CheckpointError, match=r"checkpoints/5: .*: Not a directory: "):
        write(tmp_path / "checkpoints")


def test_a_removed_root_is_created_again(tmp_path):
    write(tmp_path / "checkpoints", 4)
    shutil.rmtree(tmp_path / "checkpoints")
    assert have_same_bits(read_tensors(write(tmp_path / "checkpoints")), tensors())


def test_a_checkpoint_does_not_replace_one_of_another_run_that_has_claimed_the_directory(tmp_path):
    write_checkpoint(tmp_path, 5, {"x": torch.ones(2)}, {"run": "other"})
    with pytest.raises(CheckpointError, match=f"another run has claimed this directory: {tmp_path}"):
        write_checkpoint(tmp_path, 5, {"x": torch.zeros(2)}, {"run": "own"}, may_publish=lambda: False)
    assert read_state(tmp_path / "5") == {"run": "other"}
