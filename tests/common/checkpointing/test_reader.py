"""Reading checkpoints: every kind of damage is reported, and damaged data is never used."""

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
    NoCheckpointError,
    file_digest,
)
from common.checkpointing.reader import CheckpointReader, open_on_all_ranks, read_state, read_tensors
from common.checkpointing.writer import write_checkpoint
from tests.support.faults import flip_a_bit
from tests.support.torch_checkpoint import seal
from tests.support.toy import ALONE

TENSORS = {
    "model.weight": torch.arange(12.0).reshape(3, 4),
    "model.odd": torch.tensor([math.inf, -0.0, 1e-45]),
    "optimizer.step": torch.tensor(3, dtype=torch.int64),
}
STATE = {"progress": {"step": 5}, "window": [0.1 + 0.2, None]}
FILES = ["manifest.json", "state.json", "tensors-0.bin", "tensors.json"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path, 5, TENSORS, STATE, provenance={"torch": "2.13.0", "world_size": 2})


@pytest.fixture
def digested(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files whose digests were computed, in order."""
    names: list[str] = []

    def recorded(file: Path) -> str:
        names.append(file.name)
        return file_digest(file)

    monkeypatch.setattr(checkpoint_reader, "file_digest", recorded)
    return names


def assert_content_is_right(checkpoint: CheckpointReader) -> None:
    tensors = checkpoint.tensors()
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in TENSORS.items())
    assert checkpoint.state() == STATE


def test_tensors_are_read_by_prefix(path: Path) -> None:
    tensors = read_tensors(path, "optimizer.")
    assert tensors == {"step": TENSORS["optimizer.step"]}
    assert tensors["step"].dtype == torch.int64


def test_each_small_file_is_verified_once_before_its_content_is_used(path: Path, digested: list[str]) -> None:
    with CheckpointReader(path) as checkpoint:
        assert digested == []
        assert checkpoint.provenance == {"torch": "2.13.0", "world_size": 2}
        assert checkpoint.state() == STATE
        assert digested == ["state.json"]
        assert {name: (t.shape, t.dtype) for name, t in checkpoint.types("model.").items()} == {
            "weight": ((3, 4), torch.float32),
            "odd": ((3,), torch.float32),
        }
        assert digested == ["state.json", "tensors.json"]
        assert checkpoint.tensors("optimizer.") == {"step": TENSORS["optimizer.step"]}
        assert_content_is_right(checkpoint)
        assert digested == ["state.json", "tensors.json"]
        assert checkpoint.num_bytes == sum((path / name).stat().st_size for name in FILES if name != "manifest.json")


def test_a_checkpoint_opened_on_all_ranks_is_verified_up_to_the_content_of_tensors(
    path: Path, digested: list[str]
) -> None:
    with open_on_all_ranks(path, ALONE) as checkpoint:
        assert sorted(digested) == ["state.json", "tensors.json"]
        assert_content_is_right(checkpoint)
    assert len(digested) == 2
    flip_a_bit(path / "tensors-0.bin")
    open_on_all_ranks(path, ALONE).close()
    with (path / "tensors-0.bin").open("ab") as file:
        file.write(b"x")
    with pytest.raises(DamagedCheckpointError, match=r"tensors-0\.bin: damaged checkpoint: its size is 69 bytes"):
        open_on_all_ranks(path, ALONE)
    (path / "tensors-0.bin").unlink()
    with pytest.raises(DamagedCheckpointError, match=r"tensors-0\.bin: damaged checkpoint: .*missing"):
        open_on_all_ranks(path, ALONE)


def test_damage_in_tensors_that_are_not_read_does_not_matter_to_a_load_but_to_a_verification(path: Path) -> None:
    flip_a_bit(path / "tensors-0.bin", -1)  # in the optimizer's
    assert torch.equal(read_tensors(path, "model.")["weight"], TENSORS["model.weight"])
    for read in (verify, read_tensors):
        with pytest.raises(DamagedCheckpointError, match=r"the checksum of 'optimizer\.step' differs"):
            read(path)


@pytest.mark.parametrize("name", FILES)
def test_the_error_for_every_damage_names_the_file_and_says_what_to_do(path: Path, name: str) -> None:
    file = path / name
    content = file.read_bytes()

    def check(start: str = f"{file}: damaged checkpoint: ", advice: str = ADVICE) -> None:
        reads: dict[str, tuple[Callable[[Path], object], ...]] = {
            "manifest.json": (read_state, read_tensors),
            "state.json": (read_state, verify),
        }
        for read in reads.get(name, (read_tensors, verify)):
            with pytest.raises(CheckpointError) as caught:
                read(path)
            assert str(caught.value).startswith(start)
            assert str(caught.value).endswith(advice)

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
        check(f"{path}: not a complete checkpoint (it has no manifest.json)", ".../checkpoints/1000")
    else:
        check()
    file.write_bytes(content)
    assert_content_is_right(CheckpointReader(path))


def verify(path: Path) -> None:
    with CheckpointReader(path) as checkpoint:
        checkpoint.verify()


def test_random_damage_is_reported_or_harmless(path: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    damages: list[Callable[[bytes], bytes]] = [
        lambda content: content[: rng.integers(len(content))],  # cut short
        lambda content: content + rng.bytes(7),
        lambda content: _changed(content, rng, num_bytes=1),
        lambda content: _changed(content, rng, num_bytes=50),
        lambda content: content[: (at := rng.integers(len(content)))] + content[at + rng.integers(1, 20) :],
        lambda content: b"\0" * len(content),  # a file system can leave this after a power failure
    ]
    reported = []
    for number in range(200):
        copy = tmp_path / "copy"
        shutil.copytree(path, copy)
        file = copy / FILES[number % len(FILES)]
        content = file.read_bytes()
        changed = damages[rng.integers(len(damages))](content)
        file.write_bytes(changed)
        try:
            with CheckpointReader(copy) as checkpoint:
                assert_content_is_right(checkpoint)
        except DamagedCheckpointError as error:
            reported.append(str(error).startswith(f"{file}: damaged checkpoint: "))
        else:
            assert changed == content or file.name == "manifest.json"
        shutil.rmtree(copy)
    assert len(reported) > 150
    assert all(reported)


def _changed(content: bytes, rng: np.random.Generator, num_bytes: int) -> bytes:
    changed = bytearray(content)
    for position in rng.integers(len(content), size=num_bytes):
        changed[position] ^= rng.integers(1, 256)
    return bytes(changed)


@pytest.mark.parametrize("name", ["state.json", "tensors.json"])
def test_random_content_with_a_valid_manifest_is_an_error_or_a_value(path: Path, name: str) -> None:
    """An attacker can create such a checkpoint. The values can be anything, but nothing else goes wrong."""
    rng = np.random.default_rng(1)
    content = (path / name).read_bytes()
    messages = []
    for number in range(60):
        (path / name).write_bytes(_changed(content, rng, num_bytes=1 + number % 4))
        seal(path, version=2)
        try:
            with CheckpointReader(path) as checkpoint:
                checkpoint.state()
                checkpoint.tensors()
        except CheckpointError as error:
            messages.append(str(error))
    assert len(messages) > 10
    assert all(message.startswith(str(path)) and "\n" not in message for message in messages)


def test_the_error_for_a_directory_without_a_checkpoint_does_not_suggest_removing_it(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    for path, fact in (
        (tmp_path / "precious", "it has no manifest.json"),
        (tmp_path / "nowhere", f"no such directory (current directory: {Path.cwd()})"),
    ):
        with pytest.raises(NoCheckpointError) as caught:
            CheckpointReader(path)
        message = str(caught.value)
        assert message.startswith(f"{path}: ")
        assert fact in message
        assert message.endswith("specify a directory such as .../checkpoints/1000")


@pytest.mark.parametrize("read", [read_state, read_tensors])
def test_a_checkpoint_that_vanishes_while_being_read_is_reported_as_removed_not_as_damaged(
    path: Path, monkeypatch: pytest.MonkeyPatch, read: Callable[[Path], object]
) -> None:
    def removed(file: Path) -> str:
        path.rename(path.with_name(".writing-5-deleting"))
        return file_digest(file)

    monkeypatch.setattr(checkpoint_reader, "file_digest", removed)
    with pytest.raises(NoCheckpointError, match="/5: the checkpoint was removed"):
        read(path)


def test_an_error_of_the_operating_system_is_reported(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(file: Path) -> str:
        raise OSError(5, "Input/output error", str(file))

    monkeypatch.setattr(checkpoint_reader, "file_digest", refused)
    with pytest.raises(DamagedCheckpointError, match=r"state\.json: .*: Input/output error\. Use another checkpoint"):
        read_state(path)


def test_a_tensor_larger_than_memory_is_an_error(path: Path) -> None:
    index = (path / "tensors.json").read_text()
    assert '"shape":[3,4]' in index
    (path / "tensors.json").write_text(index.replace('"shape":[3,4]', '"shape":[2147483647,2147483647]'))
    seal(path, version=2)
    with pytest.raises(DamagedCheckpointError, match=rf"^{path}/tensors\.json: damaged checkpoint: "):
        read_tensors(path)
