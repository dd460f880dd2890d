"""Defines the index of a checkpoint's tensors: their shapes and dtypes, and where their bytes are.

A tensor is stored in chunks: one for each shard, or one for the whole tensor. The chunks in a file follow one another
without gaps, so that the checksums of their blocks cover every byte of it.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    TensorProperties,
    TensorStorageMetadata,
)

from common.checkpointing.raw_storage.blocks import row_ranges

_FILE = re.compile(r"tensors-\d+\.bin")


class InvalidIndexError(Exception):
    """Raised if JSON values are not an index."""


class DamagedTensorsError(Exception):
    """Raised if a tensor file differs from the index.

    Attributes:
      file: name of the file.
      problem: what is wrong.
    """

    def __init__(self, file: str, problem: str) -> None:
        super().__init__(file, problem)
        self.file = file
        self.problem = problem


@dataclasses.dataclass(frozen=True)
class StoredChunk:
    """A part of a tensor, and where its bytes are."""

    offsets: tuple[int, ...]
    """Index of its first value in the tensor."""
    shape: tuple[int, ...]
    file: str
    """Name of its file."""
    position: int
    """Position of its first byte in the file."""
    checksums: tuple[int, ...]
    """CRC32C of each of its blocks."""

    def size(self, dtype: torch.dtype) -> int:
        """Return its size in bytes."""
        return math.prod(self.shape) * dtype.itemsize


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor and its chunks."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    chunks: tuple[StoredChunk, ...]


@dataclasses.dataclass(frozen=True)
class TensorIndex:
    """The tensors of a checkpoint."""

    tensors: Mapping[str, StoredTensor]
    """All tensors, by name."""
    block_size: int
    """Size of a block in bytes, unless a row is larger."""

    def file_sizes(self) -> dict[str, int]:
        """Return the size of each file in bytes."""
        sizes: dict[str, int] = {}
        for tensor in self.tensors.values():
            for chunk in tensor.chunks:
                end = chunk.position + chunk.size(tensor.dtype)
                sizes[chunk.file] = max(end, sizes.get(chunk.file, 0))
        return sizes

    def metadata(self) -> Metadata:
        """Return what torch.distributed.checkpoint's planner reads."""
        return Metadata(
            {
                name: TensorStorageMetadata(
                    TensorProperties(tensor.dtype),
                    torch.Size(tensor.shape),
                    [
                        ChunkStorageMetadata(torch.Size(chunk.offsets), torch.Size(chunk.shape))
                        for chunk in tensor.chunks
                    ],
                )
                for name, tensor in self.tensors.items()
            }
        )

    def to_json(self) -> dict[str, Any]:
        """Return the index as JSON values."""
        tensors = {
            name: {
                "dtype": str(tensor.dtype).removeprefix("torch."),
                "shape": tensor.shape,
                "chunks": [
                    {
                        "offsets": chunk.offsets,
                        "shape": chunk.shape,
                        "file": chunk.file,
                        "position": chunk.position,
                        "crc32c": chunk.checksums,
                    }
                    for chunk in tensor.chunks
                ],
            }
            for name, tensor in self.tensors.items()
        }
        return {"block_size": self.block_size, "tensors": tensors}


def parse_index(content: Mapping[str, Any]) -> TensorIndex:
    """Return the index in JSON values that may come from anybody.

    Raises:
      InvalidIndexError: the values are not an index, or contradict each other.
    """
    try:
        (block_size,) = _integers([content["block_size"]])
        tensors = {name: _parse_tensor(name, value, block_size) for name, value in content["tensors"].items()}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InvalidIndexError(f"it is not an index of tensors ({error!r})") from error
    _check_files(tensors)
    return TensorIndex(tensors, block_size)


def _parse_tensor(name: str, value: Mapping[str, Any], block_size: int) -> StoredTensor:
    dtype, shape = vars(torch).get(value["dtype"]), _integers(value["shape"])
    if not isinstance(dtype, torch.dtype):
        raise InvalidIndexError(f"{name!a} has the unknown dtype {value['dtype']!a}")
    chunks = []
    for part in value["chunks"]:
        (position,) = _integers([part["position"]])
        chunk = StoredChunk(
            _integers(part["offsets"]), _integers(part["shape"]), part["file"], position, _integers(part["crc32c"])
        )
        ends = [offset + length for offset, length in zip(chunk.offsets, chunk.shape, strict=True)]
        if not all(end <= length for end, length in zip(ends, shape, strict=True)):
            raise InvalidIndexError(f"a chunk of {name!a} is not inside the tensor")
        if _FILE.fullmatch(chunk.file) is None:
            raise InvalidIndexError(f"it refers to {chunk.file!a}, which is not a tensor file of a checkpoint")
        if chunk.size(dtype) >= 2**63 or len(chunk.checksums) != len(row_ranges(chunk.shape, dtype, block_size)):
            raise InvalidIndexError(f"the number of checksums of {name!a} does not fit its size")
        chunks.append(chunk)
    if sum(math.prod(chunk.shape) for chunk in chunks) != math.prod(shape):
        raise InvalidIndexError(f"the chunks of {name!a} do not add up to the tensor")
    return StoredTensor(dtype, shape, tuple(chunks))


def _integers(values: Any) -> tuple[int, ...]:
    """Return a list of JSON integers >= 0 that fit into 64 bits as a tuple. Raises TypeError for anything else."""
    if not isinstance(values, list) or not all(type(value) is int and 0 <= value < 2**63 for value in values):
        raise TypeError(f"found {str(values)[:80]!a}, expected integers")
    return tuple(values)


def _check_files(tensors: Mapping[str, StoredTensor]) -> None:
    """Raise InvalidIndexError unless the chunks of each file follow one another without gaps."""
    ends: dict[str, int] = {}
    stored = [
        (chunk.file, chunk.position, chunk.size(tensor.dtype)) for tensor in tensors.values() for chunk in tensor.chunks
    ]
    for file, position, size in sorted(stored):
        if position != ends.get(file, 0):
            raise InvalidIndexError(f"the chunks in {file} do not follow one another")
        ends[file] = position + size
