"""Malicious checkpoints of the earlier format with valid manifests: their code never runs."""

import io
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata

from common.checkpointing.manifest import DamagedCheckpointError
from common.checkpointing.reader import CheckpointReader, read_tensors
from common.checkpointing.safe_reader import SafeReader
from tests.support.torch_checkpoint import seal, write_torch_checkpoint


class Malicious:
    """Creates a directory as proof when it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self._proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._proof),)


def put(checkpoint: Path, name: str, content: bytes) -> None:
    """Write a file of the checkpoint and update its size and digest in the manifest."""
    (checkpoint / name).write_bytes(content)
    seal(checkpoint, version=1)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_torch_checkpoint(tmp_path, 5, {"a": torch.arange(4.0), "b": torch.ones(2, dtype=torch.float64)}, {})


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
    with pytest.raises(DamagedCheckpointError, match=r"/5: .* \.metadata refers to posix\.mkdir\. Use another"):
        read(CheckpointReader(checkpoint))
    assert not proof.exists()
    with pytest.raises(AttributeError):
        dcp.FileSystemReader(checkpoint).read_metadata()
    assert proof.exists(), "otherwise this test could not fail"


def test_an_object_inside_metadata_runs_no_code(checkpoint: Path, tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    put_metadata(checkpoint, lambda metadata: setattr(metadata, "planner_data", Malicious(proof)))
    with pytest.raises(DamagedCheckpointError, match=r"refers to posix\.mkdir"):
        read_tensors(checkpoint)
    assert not proof.exists()


def test_a_tensor_file_runs_no_code(checkpoint: Path, tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    saved = io.BytesIO()
    torch.save(Malicious(proof), saved)
    put(checkpoint, "__0_0.distcp", saved.getvalue())

    def read_all_of_it(metadata: Metadata) -> None:
        for stored in metadata.storage_data.values():
            stored.offset, stored.length = 0, len(saved.getvalue())

    put_metadata(checkpoint, read_all_of_it)
    with pytest.raises(DamagedCheckpointError, match="/5: cannot load the checkpoint: "):
        read_tensors(checkpoint)
    assert not proof.exists()


def test_an_entry_that_is_not_a_tensor_is_rejected(checkpoint: Path) -> None:
    put_metadata(checkpoint, lambda metadata: metadata.state_dict_metadata.update(c=BytesStorageMetadata()))
    with pytest.raises(DamagedCheckpointError, match="cannot load the checkpoint"):
        read_tensors(checkpoint)


@pytest.mark.parametrize("elsewhere", ["../6/__0_0.distcp", "/etc/passwd", "..", "state.json"])
def test_files_outside_the_checkpoint_are_not_read(checkpoint: Path, elsewhere: str) -> None:
    def outside(metadata: Metadata) -> None:
        for stored in metadata.storage_data.values():
            stored.relative_path = elsewhere

    put_metadata(checkpoint, outside)
    with pytest.raises(DamagedCheckpointError, match=f"refers to {re.escape(elsewhere)}, which is not a tensor file"):
        read_tensors(checkpoint)


@pytest.mark.parametrize("content", [b"", b"cnothing", pickle.dumps({}), pickle.dumps([1]), b"\x80\x04."])
def test_metadata_that_torch_did_not_write_is_rejected(checkpoint: Path, content: bytes) -> None:
    put(checkpoint, ".metadata", content)
    with pytest.raises(
        DamagedCheckpointError, match=r"cannot load the checkpoint: .*\.metadata is not valid torch metadata"
    ):
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
def test_parts_with_wrong_types_are_rejected(checkpoint: Path, change: Callable[[Metadata], object]) -> None:
    put_metadata(checkpoint, change)
    for read in (CheckpointReader.tensors, CheckpointReader.types):
        with pytest.raises(DamagedCheckpointError, match="cannot load the checkpoint: "):
            read(CheckpointReader(checkpoint))


def test_files_that_the_manifest_does_not_list_are_not_read(checkpoint: Path) -> None:
    (checkpoint / "__0_0.distcp").rename(checkpoint.parent / "hidden")
    put(checkpoint, "state.json", b"{}")
    (checkpoint.parent / "hidden").rename(checkpoint / "__0_0.distcp")
    with pytest.raises(DamagedCheckpointError, match=r"refers to __0_0\.distcp, which is not a tensor file"):
        read_tensors(checkpoint)


def test_every_dtype_can_be_read(tmp_path: Path) -> None:
    dtypes = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]
    path = write_torch_checkpoint(tmp_path, 1, {str(dtype): torch.ones(3, dtype=dtype) for dtype in dtypes}, {})
    assert {name: str(tensor.dtype) for name, tensor in read_tensors(path).items()} == {str(d): str(d) for d in dtypes}
    assert SafeReader(path, ["__0_0.distcp"]).read_metadata() == metadata_of(path)


def test_metadata_written_by_another_python_version_can_be_read(checkpoint: Path) -> None:
    written = pickle.dumps(metadata_of(checkpoint), protocol=2)
    assert b"cpathlib\nPosixPath" in written
    put(checkpoint, ".metadata", written.replace(b"cpathlib\nPosixPath", b"cpathlib._local\nPosixPath"))
    assert read_tensors(checkpoint)["a"].tolist() == [0, 1, 2, 3]
