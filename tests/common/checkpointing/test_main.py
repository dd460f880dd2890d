"""Tests `python -m common.checkpointing`."""

import sys
from pathlib import Path

import pytest
import torch

from common.checkpointing.__main__ import main
from common.checkpointing.writer import write_checkpoint
from common.errors import UserError
from tests.support.faults import flip_a_bit


@pytest.fixture
def save_dir(tmp_path: Path) -> Path:
    for step in (9, 10):
        tensors = {"model.weight": torch.ones(3, 2), "model.half": torch.ones((), dtype=torch.bfloat16)}
        values = {"progress": {"step": step}, "identity": "x" * 500}
        write_checkpoint(tmp_path / "checkpoints", step, tensors, values, provenance={"world_size": 2})
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    monkeypatch.setattr(sys, "argv", ["common.checkpointing", *map(str, arguments)])
    return main()


@pytest.mark.parametrize("directory", [".", "checkpoints"])
def test_list_prints_complete_checkpoints_and_names_incomplete_ones(save_dir, monkeypatch, capsys, directory):
    (save_dir / "checkpoints/.writing-11").mkdir()
    assert run(monkeypatch, "list", save_dir / directory) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == str(save_dir / "checkpoints")
    assert [line.split()[0] for line in lines[3:5]] == ["9", "10"]
    assert lines[5].startswith("incomplete")
    assert lines[5].endswith(": .writing-11")


def test_verify_reads_all_checkpoints_or_one(save_dir, monkeypatch, capsys):
    assert run(monkeypatch, "verify", save_dir) == 0
    assert capsys.readouterr().out.count(": ok, ") == 2
    damaged = save_dir / "checkpoints/9/tensors-0.bin"
    flip_a_bit(damaged)
    assert run(monkeypatch, "verify", save_dir) == 1
    nine, ten = capsys.readouterr().out.splitlines()
    assert nine.startswith(f"{save_dir}/checkpoints/9: DAMAGED: {damaged}: ")
    assert ten.startswith(f"{save_dir}/checkpoints/10: ok, ")
    assert run(monkeypatch, "verify", save_dir / "checkpoints/10") == 0


def test_inspect_prints_the_newest_checkpoint(save_dir, monkeypatch, capsys):
    assert run(monkeypatch, "inspect", save_dir) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(
        f"{save_dir}/checkpoints/10\nworld_size: 2\n" + 'progress: {"step": 10}\nidentity: 502 characters, in '
    )
    rows = [line.split("  ") for line in printed.splitlines()]
    cells = [[cell.strip() for cell in row if cell] for row in rows]
    assert ["model.half", "bfloat16", "scalar", "2"] in cells
    assert ["model.weight", "float32", "3 x 2", "24"] in cells
    assert ["all", "7 numbers", "26"] in cells


@pytest.mark.parametrize("command", ["list", "verify", "inspect"])
def test_a_directory_without_checkpoints_is_an_error(tmp_path, monkeypatch, command):
    with pytest.raises(UserError, match="no such directory"):
        run(monkeypatch, command, tmp_path / "nowhere")
    (tmp_path / ".writing-5").mkdir()
    with pytest.raises(UserError, match=r"no complete checkpoint in .*: \.writing-5\).*save_dir"):
        run(monkeypatch, command, tmp_path)
