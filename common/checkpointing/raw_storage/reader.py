"""Reads raw bytes behind torch.distributed.checkpoint's planner, and verifies each block while it is read."""

import contextlib
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future

from common.checkpointing.raw_storage.blocks import as_rows, read_block, read_checksum, row_ranges
from common.checkpointing.raw_storage.index import DamagedTensorsError, StoredChunk, TensorIndex


class RawReader(StorageReader):
    """Reads tensors of a checkpoint.

    A block is verified before it is used. After an error, the tensors that were to be filled may contain anything.
    """

    def __init__(self, directory: Path, index: TensorIndex) -> None:
        """Initialize without reading.

        Args:
          directory: directory of the checkpoint.
          index: the verified index of its tensors.
        """
        self._directory = directory
        self._index = index
        self._chunks = {
            (name, chunk.offsets): chunk
            for name, tensor in index.tensors.items()
            for chunk in tensor.chunks
            if math.prod(chunk.shape) > 0
        }

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Do nothing: an object reads one checkpoint."""

    def read_metadata(self) -> Metadata:
        """Return the shapes, dtypes and chunks of the tensors."""
        return self._index.metadata()

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any) -> None:
        """Do nothing: the index is known."""

    def prepare_local_plan(self, plan: dcp.LoadPlan) -> dcp.LoadPlan:
        """Return the plan unchanged."""
        return plan

    def prepare_global_plan(self, plans: list[dcp.LoadPlan]) -> list[dcp.LoadPlan]:
        """Return the plans unchanged."""
        return plans

    def read_data(self, plan: dcp.LoadPlan, planner: dcp.LoadPlanner) -> Future[None]:
        """Fill this rank's tensors.

        Raises:
          OSError: a file cannot be read.
          DamagedTensorsError: a file differs from the index.
        """
        with _Blocks(self._directory, self._index) as blocks:
            for item in sorted(plan.items, key=self._place):
                target = planner.resolve_tensor(item).detach()
                if target.numel() > 0:
                    name = item.storage_index.fqn
                    blocks.read(name, self._chunk(item), tuple(item.storage_offsets), target)
                planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Return whether `checkpoint_id` is a directory."""
        return Path(checkpoint_id).is_dir()

    def _chunk(self, item: ReadItem) -> StoredChunk:
        offsets = item.storage_index.offset
        assert offsets is not None
        return self._chunks[item.storage_index.fqn, tuple(offsets)]

    def _place(self, item: ReadItem) -> tuple[str, int]:
        """Return the place of an item on disk, by which items are read in order."""
        if math.prod(item.lengths) == 0:
            return "", 0
        chunk = self._chunk(item)
        return chunk.file, chunk.position


def check_sizes(directory: Path, index: TensorIndex) -> None:
    """Raise DamagedTensorsError if a tensor file is missing or has the wrong size."""
    for name, expected in index.file_sizes().items():
        file = directory / name
        size = file.stat().st_size if file.is_file() else None
        if size is None:
            raise DamagedTensorsError(name, "the file is missing")
        if size != expected:
            raise DamagedTensorsError(name, f"its size is {size} bytes, expected {expected}")


def verify_tensors(directory: Path, index: TensorIndex) -> None:
    """Read the tensors and compare their checksums with the index.

    Raises:
      OSError: a file cannot be read.
      DamagedTensorsError: a file differs from the index.
    """
    check_sizes(directory, index)
    with _Blocks(directory, index) as blocks:
        for name, tensor in index.tensors.items():
            for chunk in tensor.chunks:
                blocks.verify(name, chunk)


class _Blocks(contextlib.ExitStack):
    """Reads and verifies blocks of chunks. Keeps their files open."""

    def __init__(self, directory: Path, index: TensorIndex) -> None:
        super().__init__()
        self._directory = directory
        self._index = index
        self._descriptors: dict[str, int] = {}

    def __enter__(self) -> Self:
        super().__enter__()
        return self

    def read(self, name: str, chunk: StoredChunk, offsets: Sequence[int], target: torch.Tensor) -> None:
        """Fill `target` with the part of a chunk that begins at `offsets`.

        Args:
          name: name of the chunk's tensor.
          chunk: chunk of the tensor.
          offsets: index of the first value within the chunk.
          target: tensor on any device, of the size of the part.
        """
        dtype = self._index.tensors[name].dtype
        target = target.reshape(as_rows(target.shape))  # a view
        first, *others = offsets or (0,)
        for number, block in enumerate(row_ranges(chunk.shape, dtype, self._index.block_size)):
            rows = range(max(block.start, first), min(block.stop, first + len(target)))
            if not rows:
                continue
            into = target[rows.start - first : rows.stop - first]
            whole = (len(block), *as_rows(chunk.shape)[1:])
            if into.shape == whole and _has_raw_bytes(into, dtype):
                self._read_block(name, chunk, number, block, into)
                continue
            values = torch.empty(whole, dtype=dtype)
            self._read_block(name, chunk, number, block, values)
            part = values[rows.start - block.start : rows.stop - block.start]
            for dimension, offset in enumerate(others, start=1):
                part = part.narrow(dimension, offset, into.size(dimension))
            into.copy_(part)

    def verify(self, name: str, chunk: StoredChunk) -> None:
        """Read all blocks of a chunk, and drop them."""
        dtype = self._index.tensors[name].dtype
        row_size = math.prod(as_rows(chunk.shape)[1:]) * dtype.itemsize
        for number, block in enumerate(row_ranges(chunk.shape, dtype, self._index.block_size)):
            position, size = chunk.position + block.start * row_size, len(block) * row_size
            self._check(name, chunk, number, block, read_checksum(self._descriptor(chunk.file), position, size))

    def _read_block(self, name: str, chunk: StoredChunk, number: int, block: range, values: torch.Tensor) -> None:
        """Fill a contiguous tensor in host memory with a block, and verify it."""
        position = chunk.position + block.start * (values.nbytes // len(block))
        self._check(name, chunk, number, block, read_block(self._descriptor(chunk.file), position, values))

    def _check(self, name: str, chunk: StoredChunk, number: int, block: range, checksum: int | None) -> None:
        if checksum != chunk.checksums[number]:
            rows = f"rows {block.start} to {block.stop - 1} of " if chunk.shape else ""
            raise DamagedTensorsError(chunk.file, f"the checksum of {rows}{name!a} differs from the index")

    def _descriptor(self, file: str) -> int:
        if file not in self._descriptors:
            opened = self.enter_context((self._directory / file).open("rb", buffering=0))
            self._descriptors[file] = opened.fileno()
        return self._descriptors[file]


def _has_raw_bytes(tensor: torch.Tensor, dtype: torch.dtype) -> bool:
    """Return whether bytes can be read into a tensor without a conversion."""
    is_plain = tensor.is_contiguous() and not tensor.is_conj() and not tensor.is_neg()
    return is_plain and tensor.dtype == dtype and tensor.device.type == "cpu"
