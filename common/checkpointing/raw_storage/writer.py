"""Writes tensors as raw bytes behind torch.distributed.checkpoint's planner: one file per rank, and an index."""

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch
import torch.distributed.checkpoint as dcp
from numpy.typing import NDArray
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.futures import Future

from common.checkpointing.raw_storage.blocks import write_tensor
from common.checkpointing.raw_storage.index import StoredChunk, StoredTensor, TensorIndex
from common.files.durable import sync_descriptor

_BUFFER_SIZE = 2**16
_FLUSH_SIZE = 16 * 2**20
"""Number of bytes after which the operating system is asked to begin to write them to disk."""


class RawWriter(StorageWriter):
    """Writes a checkpoint's tensors into a directory. All files are durable when dcp.save() returns.

    The directory itself must still be synchronized.
    """

    def __init__(self, directory: Path, index: str, rank: int, block_size: int = 4 * 2**20) -> None:
        """Initialize without writing.

        Args:
          directory: existing directory, the same on all ranks.
          index: name of the index file.
          rank: rank of this process.
          block_size: size in bytes of a block with a checksum, unless a row is larger.
        """
        self._directory = directory
        self._index = index
        self._block_size = block_size
        self._name = f"tensors-{rank}.bin"

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Do nothing: an object writes one checkpoint."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any) -> None:
        """Do nothing: finish() is called on the coordinator only."""

    def prepare_local_plan(self, plan: dcp.SavePlan) -> dcp.SavePlan:
        """Return the plan unchanged."""
        return plan

    def prepare_global_plan(self, plans: list[dcp.SavePlan]) -> list[dcp.SavePlan]:
        """Return the plans unchanged."""
        return plans

    def write_data(self, plan: dcp.SavePlan, planner: dcp.SavePlanner) -> Future[list[WriteResult]]:
        """Write this rank's share of the tensors.

        Raises:
          OSError: the file cannot be written or synchronized.
          TypeError: the state contains something other than tensors.
        """
        results: list[WriteResult] = []
        if plan.items:
            with (self._directory / self._name).open("wb", buffering=_BUFFER_SIZE) as file:
                results = self._write_items(plan, planner, _EarlyWriteback(file).write)
                file.flush()
                sync_descriptor(file.fileno())
        written: Future[list[WriteResult]] = Future()
        written.set_result(results)
        return written

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Write the index. Called on the coordinator. Raises OSError."""
        chunks: dict[str, list[StoredChunk]] = {name: [] for name in metadata.state_dict_metadata}
        for result in (result for of_rank in results for result in of_rank):
            chunks[result.index.fqn].append(result.storage_data)
        tensors = {}
        for name, entry in metadata.state_dict_metadata.items():
            assert isinstance(entry, TensorStorageMetadata)
            in_order = sorted(chunks[name], key=lambda chunk: chunk.offsets)
            tensors[name] = StoredTensor(entry.properties.dtype, tuple(entry.size), tuple(in_order))
        with (self._directory / self._index).open("w") as file:
            file.write(json.dumps(TensorIndex(tensors, self._block_size).to_json(), separators=(",", ":")))
            file.flush()
            sync_descriptor(file.fileno())

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Return whether `checkpoint_id` is a directory."""
        return Path(checkpoint_id).is_dir()

    def _write_items(
        self, plan: dcp.SavePlan, planner: dcp.SavePlanner, write: Callable[[NDArray[Any]], object]
    ) -> list[WriteResult]:
        results, position = [], 0
        for item in plan.items:
            tensor = planner.resolve_data(item)
            if item.tensor_data is None or not isinstance(tensor, torch.Tensor):
                raise TypeError(f"{item.index.fqn} is not a tensor")
            part = item.tensor_data.chunk
            checksums = write_tensor(write, tensor, self._block_size)
            chunk = StoredChunk(tuple(part.offsets), tuple(part.sizes), self._name, position, checksums)
            size = chunk.size(tensor.dtype)
            results.append(WriteResult(item.index, size, chunk))
            position += size
        return results


class _EarlyWriteback:
    """Lets the disk write a file while the rest of it is being produced, so that little is left for fsync."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._begun = 0
        self._end = 0

    def write(self, content: NDArray[Any]) -> None:
        """Append bytes to the file. Raises OSError."""
        self._file.write(content.data)
        self._end += len(content)
        if self._end - self._begun >= _FLUSH_SIZE:
            self._file.flush()
            # Linux begins to write changed pages to disk, and drops only unchanged ones from the page cache.
            with contextlib.suppress(OSError):  # it is only advice
                os.posix_fadvise(self._file.fileno(), self._begun, self._end - self._begun, os.POSIX_FADV_DONTNEED)
            self._begun = self._end
