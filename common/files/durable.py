"""Writes files so that they survive a power failure, on any file system that can do so.

A file system that cannot synchronize (fsync) a file or a directory is no reason to fail. abilities.py finds out what a
directory can do.
"""

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

# What fsync returns where the file system does not have it: CIFS for directories, some FUSE file systems, pipes.
_UNSUPPORTED = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


def sync_descriptor(descriptor: int) -> bool:
    """Make an open file or directory durable.

    Returns:
      False if the file system cannot do that.

    Raises:
      OSError: the data could not be written.
    """
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return False
        raise
    return True


def sync_file(path: Path) -> bool:
    """Make the content of a file durable. Like sync_descriptor()."""
    return _sync(path, os.O_RDONLY)


def sync_directory(path: Path) -> bool:
    """Make the names in a directory durable: created, renamed and deleted files. Like sync_descriptor()."""
    return _sync(path, os.O_RDONLY | os.O_DIRECTORY)


def sync_tree(path: Path) -> None:
    """Make all files and directories under a directory durable. Raises OSError."""
    for entry in path.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            sync_tree(entry)
        elif entry.is_file():
            sync_file(entry)
    sync_directory(path)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a hidden path to write to, and publish the file, replacing any other, when the block ends without an error.

    The file is durable before it appears under its name. After an error, the hidden file is removed.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        yield partial
        sync_file(partial)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def replace_file(path: Path, content: str) -> None:
    """Write a file so that it has either its earlier content or all of the new one, even after a power failure.

    Raises:
      OSError: the file could not be written. It has its earlier content.
    """
    with atomic_file(path) as partial:
        partial.write_text(content, encoding="utf-8")


def is_blank(content: bytes) -> bool:
    """Return whether a file is empty, or has only the zeros that a power failure can leave."""
    return not content.strip(b"\0 \t\r\n")


def _sync(path: Path, flags: int) -> bool:
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    try:
        return sync_descriptor(descriptor)
    finally:
        os.close(descriptor)
