"""Writes and reads the raw bytes of tensors in blocks, and computes a checksum of each block in the same pass.

A block is a number of whole rows (a row is a slice along the first dimension), so that a part of a tensor can be read
and verified without the rest. The checksums are CRC32C, which detects every change of up to 32 bits in a row.
"""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import google_crc32c
import numpy as np
import torch
from numpy.typing import NDArray

_PIECE_SIZE = 2**20
"""Number of bytes that are copied and then checked while they are in the processor's cache."""


def as_rows(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the shape in which a tensor is cut into rows: a scalar is one row."""
    return tuple(shape) or (1,)


def row_ranges(shape: Sequence[int], dtype: torch.dtype, block_size: int) -> list[range]:
    """Return the rows of each block of a tensor; [] if the tensor is empty."""
    num_rows, *row = as_rows(shape)
    row_size = math.prod(row) * dtype.itemsize
    if num_rows * row_size == 0:
        return []
    step = max(1, block_size // row_size)
    return [range(start, min(start + step, num_rows)) for start in range(0, num_rows, step)]


def write_tensor(write: Callable[[NDArray[Any]], object], tensor: torch.Tensor, block_size: int) -> tuple[int, ...]:
    """Write the values of a tensor in C order, and return the checksums of its blocks.

    Args:
      write: writes bytes to a file.
      tensor: tensor on any device, of any strides.
      block_size: size of a block in bytes, unless a row is larger.
    """
    rows = tensor.detach().reshape(as_rows(tensor.shape))
    checksums = []
    for block in row_ranges(tensor.shape, tensor.dtype, block_size):
        values = rows[block.start : block.stop].cpu().resolve_conj().resolve_neg().contiguous()
        checksum = 0
        for piece in _pieces(values):
            checksum = google_crc32c.extend(checksum, piece)
            write(piece)
        checksums.append(checksum)
    return tuple(checksums)


def read_block(descriptor: int, position: int, into: torch.Tensor) -> int | None:
    """Fill a tensor from a file, and return the checksum of the bytes, or None if the file ends early. Raises OSError.

    Args:
      descriptor: file descriptor.
      position: position of the first byte in the file.
      into: contiguous tensor in host memory.
    """
    checksum = 0
    for piece in _pieces(into):
        if not _fill(descriptor, position, piece):
            return None
        checksum = google_crc32c.extend(checksum, piece)
        position += len(piece)
    return checksum


def read_checksum(descriptor: int, position: int, size: int) -> int | None:
    """Return the checksum of `size` bytes of a file, or None if the file ends early. Raises OSError."""
    buffer: NDArray[np.uint8] = np.empty(min(size, _PIECE_SIZE), np.uint8)
    checksum, end = 0, position + size
    while position < end:
        piece = buffer[: end - position]
        if not _fill(descriptor, position, piece):
            return None
        checksum = google_crc32c.extend(checksum, piece)
        position += len(piece)
    return checksum


def _fill(descriptor: int, position: int, piece: NDArray[Any]) -> bool:
    """Fill bytes from a file. Return False if the file ends early."""
    filled = 0
    while filled < len(piece):
        count = os.preadv(descriptor, [piece[filled:].data], position + filled)
        if count == 0:
            return False
        filled += count
    return True


def _pieces(values: torch.Tensor) -> Iterator[NDArray[Any]]:
    """Yield the bytes of a contiguous tensor in host memory, as views."""
    content: NDArray[np.uint8] = values.reshape(-1).view(torch.uint8).numpy()
    for start in range(0, len(content), _PIECE_SIZE):
        yield content[start : start + _PIECE_SIZE]
