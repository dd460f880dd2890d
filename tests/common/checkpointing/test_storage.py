import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from common.checkpointing import storage
from common.checkpointing.storage import (
    CheckpointError,
    DamagedCheckpointError,
    NoCheckpointError,
    complete_steps,
    read_provenance,
    read_state,
    read_tensors,
    remove_unfinished,
    write_checkpoint,
)
from tests.faults import full_disk

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


def files_of(path: Path) -> list[str]:
    return sorted(p.name for p in path.iterdir())


ADVICE = "; a run continues from the one before it"
FILES = [".metadata", "__0_0.distcp", "manifest.json", "state.json"]


def test_the_manifest_covers_every_other_file(tmp_path):
    path = write(tmp_path)
    assert files_of(path) == FILES
    assert sorted(json.loads((path / "manifest.json").read_text())["files"]) == sorted(set(FILES) - {"manifest.json"})


@pytest.mark.parametrize("name", FILES)
def test_every_damage_is_told_with_the_file_and_what_to_do(tmp_path, name):
    path = write(tmp_path)
    file = path / name
    content = file.read_bytes()

    def check(file_named: Path = file, advice: str = ADVICE) -> None:
        with pytest.raises(CheckpointError) as raised:
            read_tensors(path)
        assert str(raised.value).startswith(f"{file_named}: ")
        assert advice in str(raised.value)

    if name != "manifest.json":
        for position in {0, len(content) // 3, len(content) - 1}:
            damaged = bytearray(content)
            damaged[position] ^= 1
            file.write_bytes(damaged)
            check()
    file.write_bytes(content[:-3])
    check()
    file.write_bytes(b"")
    check()
    file.unlink()
    if name == "manifest.json":
        check(path, "no complete checkpoint here (no manifest.json); give a directory such as")
    else:
        check()
    file.write_bytes(content)
    assert same_bits(read_tensors(path), tensors())


def test_a_manifest_with_any_byte_changed_is_damage_or_harmless(tmp_path):
    path = write_checkpoint(tmp_path, 5, {"a": torch.ones(2)}, {})
    manifest = path / "manifest.json"
    content = manifest.read_bytes()
    told: list[str] = []
    for position in range(len(content)):
        for mask in (1, 128):
            damaged = bytearray(content)
            damaged[position] ^= mask
            manifest.write_bytes(damaged)
            try:
                found = read_tensors(path)
            except CheckpointError as error:
                told.append(str(error))
            else:
                assert torch.equal(found["a"], torch.ones(2))
    assert len(told) > len(content)
    assert all(message.startswith(f"{path}/") and message.endswith(ADVICE) for message in told)


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "{}",
        '{"files": {}}',
        '{"format": 1, "provenance": {}, "files": {}}',
        '{"format": 1, "provenance": {}, "files": [1]}',
        '{"format": 1, "provenance": {}, "files": {"state.json": {}}}',
        '{"format": 1, "provenance": 3, "files": {}}',
        "\x00",
    ],
)
def test_a_manifest_of_another_kind_is_damage(tmp_path, content):
    path = write(tmp_path)
    (path / "manifest.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"manifest\.json: damaged checkpoint"):
        read_state(path)


def test_a_manifest_tells_what_wrote_the_checkpoint(tmp_path):
    path = write_checkpoint(tmp_path, 5, tensors(), VALUES, provenance={"torch": "2.13.0", "world_size": 2})
    assert read_provenance(path) == {"torch": "2.13.0", "world_size": 2}
    assert read_provenance(write(tmp_path, 6)) == {}
    manifest = path / "manifest.json"
    assert json.loads(manifest.read_text()).keys() == {"format", "step", "provenance", "files"}
    manifest.write_text(manifest.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(DamagedCheckpointError, match="format 2 found, this program reads 1"):
        read_tensors(path)


def test_the_state_is_verified_before_it_is_believed(tmp_path):
    path = write(tmp_path)
    state = path / "state.json"
    state.write_text(state.read_text().replace("3.0", "4.0"))
    with pytest.raises(CheckpointError, match=r"state\.json: damaged checkpoint: its digest"):
        read_state(path)


@pytest.mark.parametrize("read", [read_state, read_tensors])
def test_where_there_is_no_checkpoint_nothing_is_to_be_removed(tmp_path, read):
    (tmp_path / "precious").mkdir()
    for path, found in (
        (tmp_path / "precious", "no complete checkpoint here (no manifest.json)"),
        (tmp_path / "nowhere", f"no such directory (looked from {Path.cwd()})"),
    ):
        with pytest.raises(CheckpointError) as raised:
            read(path)
        assert str(raised.value) == f"{path}: {found}; give a directory such as .../checkpoints/1000"


@pytest.mark.parametrize("what", ["tensors", "values"])
def test_a_disk_that_refuses_is_one_clear_error_and_leaves_the_older_checkpoint(tmp_path, what):
    write(tmp_path, 4)
    big_tensors = {"a": torch.zeros(100_000 if what == "tensors" else 1)}
    big_values = {"a": "x" * (100_000 if what == "values" else 1)}
    with full_disk(65536), pytest.raises(CheckpointError) as raised:
        write_checkpoint(tmp_path, 5, big_tensors, big_values)
    message = str(raised.value)
    assert message.startswith(f"{tmp_path / '5'}: the checkpoint can't be written (is the disk full?): ")
    assert message.endswith("Complete checkpoints: [4]")
    assert "Traceback" not in message
    assert complete_steps(tmp_path) == [4]


def test_a_root_that_is_a_file_is_a_clear_error(tmp_path):
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(CheckpointError, match=r"checkpoints/5: the checkpoint can't be written .*Not a directory"):
        write(tmp_path / "checkpoints")


@pytest.mark.parametrize("read", [read_state, read_tensors])
def test_a_checkpoint_that_vanishes_while_it_is_read_is_none_and_not_a_damaged_one(tmp_path, monkeypatch, read):
    path = write(tmp_path)
    digest = storage._digest

    def rotated_away(file: Path) -> str:
        path.rename(tmp_path / ".writing-5-deleting")
        return digest(file)

    monkeypatch.setattr(storage, "_digest", rotated_away)
    with pytest.raises(NoCheckpointError, match="/5: the checkpoint was removed while it was read"):
        read(path)


def test_a_checkpoint_that_the_system_cannot_read_need_not_be_removed(tmp_path, monkeypatch):
    path = write(tmp_path)

    def refused(file: Path) -> str:
        raise OSError(5, "Input/output error", str(file))

    monkeypatch.setattr(storage, "_digest", refused)
    with pytest.raises(DamagedCheckpointError, match=r"state\.json: can't be read: Input/output error$"):
        read_state(path)
