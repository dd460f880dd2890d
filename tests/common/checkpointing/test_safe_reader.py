"""Checkpoints made to run code, with manifests that are right."""

import io
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata

from common.checkpointing.manifest import DamagedCheckpointError, FileRecord, file_digest, make_manifest
from common.checkpointing.reader import CheckpointReader, read_tensors
from common.checkpointing.safe_reader import SafeReader
from common.checkpointing.writer import write_checkpoint


class Malicious:
    """Makes a file where it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self._proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._proof),)


def put(checkpoint: Path, name: str, content: bytes) -> None:
    """Into a file, and its size and digest into the manifest."""
    (checkpoint / name).write_bytes(content)
    files = {
        file.name: FileRecord(file.stat().st_size, file_digest(file))
        for file in checkpoint.iterdir()
        if file.name != "manifest.json"
    }
    (checkpoint / "manifest.json").write_text(json.dumps(make_manifest(5, files, {})))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path, 5, {"a": torch.arange(4.0), "b": torch.ones(2, dtype=torch.float64)}, {})


def metadata_of(checkpoint: Path) -> Metadata:
    metadata: Metadata = pickle.loads((checkpoint / ".metadata").read_bytes())
    return metadata


def put_metadata(checkpoint: Path, change: Callable[[Metadata], object]) -> None:
    metadata = metadata_of(checkpoint)
    change(metadata)
    put(checkpoint, ".metadata", pickle.dumps(metadata))


@pytest.mark.parametrize("read", [CheckpointReader.tensors, CheckpointReader.types])
def test_metadata_runs_no_code(checkpoint: Path, tmp_path: Path, read: Callable[[CheckpointReader], object]) -> None:
    proof = tmp_path / "proof"
    put(checkpoint, ".metadata", pickle.dumps(Malicious(proof)))
    with pytest.raises(DamagedCheckpointError, match=r"/5: not loaded: .* \.metadata names posix\.mkdir; give another"):
        read(CheckpointReader(checkpoint))
    assert not proof.exists()
    with pytest.raises(AttributeError):
        dcp.FileSystemReader(checkpoint).read_metadata()
    assert proof.exists(), "else the test could not fail"


def test_what_is_within_metadata_runs_no_code(checkpoint: Path, tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    put_metadata(checkpoint, lambda metadata: setattr(metadata, "planner_data", Malicious(proof)))
    with pytest.raises(DamagedCheckpointError, match=r"names posix\.mkdir"):
        read_tensors(checkpoint)
    assert not proof.exists()


def test_a_tensors_file_runs_no_code(checkpoint: Path, tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    saved = io.BytesIO()
    torch.save(Malicious(proof), saved)
    put(checkpoint, "__0_0.distcp", saved.getvalue())

    def only(metadata: Metadata) -> None:
        for stored in metadata.storage_data.values():
            stored.offset, stored.length = 0, len(saved.getvalue())

    put_metadata(checkpoint, only)
    with pytest.raises(DamagedCheckpointError, match="/5: not loaded: "):
        read_tensors(checkpoint)
    assert not proof.exists()


def test_what_is_no_tensor_is_refused(checkpoint: Path) -> None:
    put_metadata(checkpoint, lambda metadata: metadata.state_dict_metadata.update(c=BytesStorageMetadata()))
    with pytest.raises(DamagedCheckpointError, match="not loaded"):
        read_tensors(checkpoint)


@pytest.mark.parametrize("elsewhere", ["../6/__0_0.distcp", "/etc/passwd", "..", "state.json"])
def test_files_outside_are_not_read(checkpoint: Path, elsewhere: str) -> None:
    def outside(metadata: Metadata) -> None:
        for stored in metadata.storage_data.values():
            stored.relative_path = elsewhere

    put_metadata(checkpoint, outside)
    with pytest.raises(DamagedCheckpointError, match="a tensor is to be read from "):
        read_tensors(checkpoint)


@pytest.mark.parametrize("content", [b"", b"cnothing", pickle.dumps({}), pickle.dumps([1]), b"\x80\x04."])
def test_what_is_not_torchs_is_refused(checkpoint: Path, content: bytes) -> None:
    put(checkpoint, ".metadata", content)
    with pytest.raises(DamagedCheckpointError, match=r"not loaded: .*\.metadata is not torch's"):
        read_tensors(checkpoint)


@pytest.mark.parametrize(
    "change",
    [
        lambda metadata: setattr(metadata, "state_dict_metadata", [1]),
        lambda metadata: setattr(metadata, "storage_data", {1: 2}),
        lambda metadata: setattr(metadata.state_dict_metadata["a"], "size", "large"),
        lambda metadata: setattr(metadata.state_dict_metadata["a"], "size", torch.Size([-1])),
        lambda metadata: setattr(metadata.state_dict_metadata["a"], "properties", None),
        lambda metadata: metadata.state_dict_metadata.update({7: metadata.state_dict_metadata["a"]}),
    ],
)
def test_parts_of_other_types_are_refused(checkpoint: Path, change: Callable[[Metadata], object]) -> None:
    put_metadata(checkpoint, change)
    for read in (CheckpointReader.tensors, CheckpointReader.types):
        with pytest.raises(DamagedCheckpointError, match="not loaded: "):
            read(CheckpointReader(checkpoint))


def test_files_that_the_manifest_does_not_list_are_not_read(checkpoint: Path) -> None:
    (checkpoint / "__0_0.distcp").rename(checkpoint.parent / "hidden")
    put(checkpoint, "state.json", b"{}")
    (checkpoint.parent / "hidden").rename(checkpoint / "__0_0.distcp")
    with pytest.raises(DamagedCheckpointError, match=r"a tensor is to be read from __0_0\.distcp"):
        read_tensors(checkpoint)


def test_every_dtype_is_read(tmp_path: Path) -> None:
    dtypes = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]
    path = write_checkpoint(tmp_path, 1, {str(dtype): torch.ones(3, dtype=dtype) for dtype in dtypes}, {})
    assert {name: str(tensor.dtype) for name, tensor in read_tensors(path).items()} == {str(d): str(d) for d in dtypes}
    assert SafeReader(path, ["__0_0.distcp"]).read_metadata() == metadata_of(path)


def test_metadata_of_another_python_is_read(checkpoint: Path) -> None:
    written = pickle.dumps(metadata_of(checkpoint), protocol=2)
    assert b"cpathlib\nPosixPath" in written
    put(checkpoint, ".metadata", written.replace(b"cpathlib\nPosixPath", b"cpathlib._local\nPosixPath"))
    assert read_tensors(checkpoint)["a"].tolist() == [0, 1, 2, 3]
