"""A checkpoint that is read: what is damaged is told, whatever the damage, and nothing of it is used."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from common.checkpointing import reader as checkpoint_reader
from common.checkpointing.manifest import (
    ADVICE,
    CheckpointError,
    DamagedCheckpointError,
    FileRecord,
    NoCheckpointError,
    file_digest,
    make_manifest,
)
from common.checkpointing.reader import CheckpointReader, open_on_all_ranks, read_state, read_tensors
from common.checkpointing.writer import write_checkpoint
from tests.support.toy import ALONE

TENSORS = {
    "model.weight": torch.arange(12.0).reshape(3, 4),
    "model.odd": torch.tensor([math.inf, -0.0, 1e-45]),
    "optimizer.step": torch.tensor(3, dtype=torch.int64),
}
STATE = {"progress": {"step": 5}, "window": [0.1 + 0.2, None]}
FILES = [".metadata", "__0_0.distcp", "manifest.json", "state.json"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path, 5, TENSORS, STATE, provenance={"torch": "2.13.0", "world_size": 2})


@pytest.fixture
def digested(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files whose digests were computed."""
    names: list[str] = []

    def noted(file: Path) -> str:
        names.append(file.name)
        return file_digest(file)

    monkeypatch.setattr(checkpoint_reader, "file_digest", noted)
    return names


def assert_is_read(checkpoint: CheckpointReader) -> None:
    found = checkpoint.tensors()
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(tensor, found[name]) for name, tensor in TENSORS.items())
    assert checkpoint.state() == STATE


def test_each_file_is_verified_once_before_it_is_used(path: Path, digested: list[str]) -> None:
    with CheckpointReader(path) as checkpoint:
        assert digested == []
        assert checkpoint.provenance == {"torch": "2.13.0", "world_size": 2}
        assert checkpoint.state() == STATE
        assert digested == ["state.json"]
        assert {name: (t.shape, t.dtype) for name, t in checkpoint.types("model.").items()} == {
            "weight": ((3, 4), torch.float32),
            "odd": ((3,), torch.float32),
        }
        assert digested == ["state.json", ".metadata"]
        assert checkpoint.tensors("optimizer.") == {"step": TENSORS["optimizer.step"]}
        assert_is_read(checkpoint)
        assert sorted(digested) == [".metadata", "__0_0.distcp", "state.json"]
        assert checkpoint.num_bytes == sum((path / name).stat().st_size for name in FILES if name != "manifest.json")


def test_ranks_share_the_verification_out(path: Path, digested: list[str]) -> None:
    for rank in (0, 1):
        with CheckpointReader(path) as checkpoint:
            checkpoint.verify(rank, 2)
            checkpoint.verified_by_all()
            assert_is_read(checkpoint)
    assert sorted(digested) == [".metadata", "__0_0.distcp", "state.json"]


def test_what_is_opened_together_is_verified(path: Path, digested: list[str]) -> None:
    with open_on_all_ranks(path, ALONE) as checkpoint:
        assert len(digested) == 3
        assert_is_read(checkpoint)
    assert len(digested) == 3
    (path / "state.json").unlink()
    with pytest.raises(DamagedCheckpointError, match=r"state\.json: damaged checkpoint: the file is missing"):
        open_on_all_ranks(path, ALONE)


@pytest.mark.parametrize("name", FILES)
def test_every_damage_is_told_with_the_file_and_what_to_do(path: Path, name: str) -> None:
    file = path / name
    content = file.read_bytes()

    def check(told: str = f"{file}: damaged checkpoint: ", advice: str = ADVICE) -> None:
        for read in (read_state, read_tensors) if name == "manifest.json" else (read_tensors, verify):
            with pytest.raises(CheckpointError) as raised:
                read(path)
            assert str(raised.value).startswith(told)
            assert str(raised.value).endswith(advice)

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
        found = "no complete checkpoint here (no manifest.json)"
        check(f"{path}: {found}", "; give a directory such as .../checkpoints/1000")
    else:
        check()
    file.write_bytes(content)
    assert_is_read(CheckpointReader(path))


def verify(path: Path) -> None:
    with CheckpointReader(path) as checkpoint:
        checkpoint.verify()


def test_random_damage_is_told_or_harmless(path: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    damages: list[Callable[[bytes], bytes]] = [
        lambda content: content[: rng.integers(len(content))],  # cut short
        lambda content: content + rng.bytes(7),
        lambda content: _changed(content, rng, num_bytes=1),
        lambda content: _changed(content, rng, num_bytes=50),
        lambda content: content[: (at := rng.integers(len(content)))] + content[at + rng.integers(1, 20) :],
        lambda content: b"\0" * len(content),  # what a file system may leave after a loss of power
    ]
    told = []
    for number in range(200):
        copy = tmp_path / "copy"
        shutil.copytree(path, copy)
        file = copy / FILES[number % len(FILES)]
        content = file.read_bytes()
        changed = damages[rng.integers(len(damages))](content)
        file.write_bytes(changed)
        try:
            with CheckpointReader(copy) as checkpoint:
                assert_is_read(checkpoint)
        except DamagedCheckpointError as error:
            told.append(str(error).startswith(f"{file}: damaged checkpoint: "))
        else:
            assert changed == content or file.name == "manifest.json"
        shutil.rmtree(copy)
    assert len(told) > 150
    assert all(told)


def _changed(content: bytes, rng: np.random.Generator, num_bytes: int) -> bytes:
    changed = bytearray(content)
    for position in rng.integers(len(content), size=num_bytes):
        changed[position] ^= rng.integers(1, 256)
    return bytes(changed)


@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp", "state.json"])
def test_random_content_with_a_manifest_that_is_right_is_an_error_or_a_value(path: Path, name: str) -> None:
    """As a stranger could make it: a value may be any then, but nothing else goes wrong."""
    rng = np.random.default_rng(1)
    content = (path / name).read_bytes()
    told = []
    for number in range(60):
        (path / name).write_bytes(_changed(content, rng, num_bytes=1 + number % 4))
        seal(path)
        try:
            with CheckpointReader(path) as checkpoint:
                checkpoint.state()
                checkpoint.tensors()
        except CheckpointError as error:
            told.append(str(error))
    assert len(told) > 10
    assert all(message.startswith(str(path)) and "\n" not in message for message in told)


def seal(path: Path, step: int = 5) -> None:
    """Writes a manifest that is right for the files there are."""
    files = {file.name: FileRecord(file.stat().st_size, file_digest(file)) for file in path.iterdir()}
    del files["manifest.json"]
    (path / "manifest.json").write_text(json.dumps(make_manifest(step, files, {})))


def test_where_there_is_no_checkpoint_nothing_is_to_be_removed(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    for path, found in (
        (tmp_path / "precious", "no complete checkpoint here (no manifest.json)"),
        (tmp_path / "nowhere", f"no such directory (looked from {Path.cwd()})"),
    ):
        with pytest.raises(NoCheckpointError) as raised:
            CheckpointReader(path)
        assert str(raised.value) == f"{path}: {found}; give a directory such as .../checkpoints/1000"


@pytest.mark.parametrize("read", [read_state, read_tensors])
def test_a_checkpoint_that_vanishes_while_it_is_read_is_none_and_not_a_damaged_one(
    path: Path, monkeypatch: pytest.MonkeyPatch, read: Callable[[Path], object]
) -> None:
    def removed(file: Path) -> str:
        path.rename(path.with_name(".writing-5-deleting"))
        return file_digest(file)

    monkeypatch.setattr(checkpoint_reader, "file_digest", removed)
    with pytest.raises(NoCheckpointError, match="/5: the checkpoint was removed while it was read"):
        read(path)


def test_a_checkpoint_that_the_system_cannot_read_is_told_so(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(file: Path) -> str:
        raise OSError(5, "Input/output error", str(file))

    monkeypatch.setattr(checkpoint_reader, "file_digest", refused)
    with pytest.raises(DamagedCheckpointError, match=r"state\.json: can't be read: Input/output error; give another"):
        read_state(path)


def test_a_tensor_larger_than_the_memory_is_an_error(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, 5, {"a": torch.ones(1), "b": torch.ones(7, 3)}, {})
    metadata = (path / ".metadata").read_bytes()
    sizes = b"K\x07K\x03"  # pickled small integers
    assert sizes in metadata
    (path / ".metadata").write_bytes(metadata.replace(sizes, b"J\xff\xff\xff\x7fJ\xff\xff\xff\x7f"))
    seal(path)
    with pytest.raises(DamagedCheckpointError, match=f"^{path}: not loaded: "):
        read_tensors(path)
