"""Checkpoints of the earlier format (torch's own tensor files, BLAKE2b of each file) are still read."""

import shutil
import sys
from pathlib import Path

import pytest
import torch

from common.checkpointing.__main__ import main
from common.checkpointing.manifest import DamagedCheckpointError
from common.checkpointing.reader import CheckpointReader, open_on_all_ranks, read_state, read_tensors
from tests.support.faults import flip_a_bit
from tests.support.torch_checkpoint import write_torch_checkpoint
from tests.support.toy import ALONE

STORED = Path(__file__).parent / "torch_format"
"""Written on two ranks by the last commit that wrote this format."""
EXPECTED = {
    "model.table": torch.arange(20).reshape(5, 4).to(torch.float16) / 8,  # sharded: 3 rows and 2 rows
    "model.weight": torch.arange(12.0).reshape(3, 4),
    "model.half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "model.count": torch.tensor(2**40 + 1),
    "model.empty": torch.zeros(0, 3),
    "model.mask": torch.tensor([True, False, True]),
    "optimizer.step.weight": torch.tensor(3.0),
    "optimizer.exp_avg.weight": torch.arange(12.0, dtype=torch.float64).reshape(4, 3).t(),
}
FILES = [".metadata", "__0_0.distcp", "__1_0.distcp", "state.json"]


def assert_is_expected(tensors: dict[str, torch.Tensor]) -> None:
    assert tensors.keys() == EXPECTED.keys()
    for name, tensor in EXPECTED.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor), name


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return shutil.copytree(STORED / "7", tmp_path / "7")


def test_a_stored_checkpoint_is_read() -> None:
    assert_is_expected(read_tensors(STORED / "7"))
    assert read_state(STORED / "7") == {"progress": {"step": 7}, "window": [0.1 + 0.2, None]}
    with open_on_all_ranks(STORED / "7", ALONE) as checkpoint:
        assert checkpoint.provenance == {"torch": "2.13.0", "world_size": 2}
        assert checkpoint.num_bytes == sum((STORED / "7" / name).stat().st_size for name in FILES)
        assert {name: tensor.shape for name, tensor in checkpoint.types("model.").items()} == {
            name.removeprefix("model."): tensor.shape for name, tensor in EXPECTED.items() if name.startswith("model.")
        }
        assert_is_expected(checkpoint.tensors())


@pytest.mark.parametrize("name", FILES)
def test_damage_in_any_file_is_found_before_tensors_are_used(path: Path, name: str) -> None:
    for position in {0, (path / name).stat().st_size // 2, -1}:
        flip_a_bit(path / name, position)
        for read in (read_tensors, lambda path: open_on_all_ranks(path, ALONE)):
            with pytest.raises(DamagedCheckpointError, match=rf"^{path}/{name}: damaged checkpoint: its digest"):
                read(path)
        flip_a_bit(path / name, position)
    assert_is_expected(read_tensors(path))


def test_ranks_share_the_verification(path: Path) -> None:
    flip_a_bit(path / "__0_0.distcp")
    finders = []
    for rank in range(3):
        with CheckpointReader(path) as checkpoint:
            try:
                checkpoint.prepare(rank, 3)
            except DamagedCheckpointError:
                finders.append(rank)
    assert len(finders) == 1


def test_the_commands_read_both_formats(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_torch_checkpoint(path.parent, 8, EXPECTED, {"progress": {"step": 8}}, world_size=1)
    for command, printed in (
        ("list", ["\n     7  ", "\n     8  "]),
        ("verify", [f"{path}: ok, ", f"{path.with_name('8')}: ok, "]),
        ("inspect", ["world_size: 1", 'progress: {"step": 8}', "model.table"]),
    ):
        monkeypatch.setattr(sys, "argv", ["common.checkpointing", command, str(path.parent)])
        assert main() == 0
        output = capsys.readouterr().out
        assert [part for part in printed if part not in output] == []
