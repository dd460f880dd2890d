"""Faults that tests inject."""

import contextlib
import ctypes
import resource
import struct
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """Make writes fail as on a full disk: no file of this process can grow beyond `limit` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextlib.contextmanager
def forbidden(path: Path, allowed: int = 0o555) -> Iterator[None]:
    """Restrict the directory to the mode `allowed`, even for root, in this thread and the threads that it starts."""
    mode = path.stat().st_mode
    path.chmod(allowed)
    try:
        with _without_override():
            yield
    finally:
        path.chmod(mode)


@contextlib.contextmanager
def _without_override() -> Iterator[None]:
    """Remove CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, with which root ignores permissions, from this thread."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = struct.pack("Ii", 0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this thread
    before = ctypes.create_string_buffer(24)
    if libc.capget(header, before):
        raise OSError(ctypes.get_errno(), "capget")
    effective, *others = struct.unpack("6I", before.raw)
    if libc.capset(header, struct.pack("6I", effective & ~(1 << 1 | 1 << 2), *others)):
        raise OSError(ctypes.get_errno(), "capset")
    try:
        yield
    finally:
        libc.capset(header, before)


def flip_a_bit(file: Path, position: int | None = None) -> None:
    """Flip one bit of the byte at `position`, or in the middle of the file."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2 if position is None else position] ^= 1
    file.write_bytes(content)
