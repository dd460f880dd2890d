"""Finds out what a directory's file system can do, before a program relies on it for hours.

Each check uses files of its own with random hidden names, and removes them.
"""

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from common.files.durable import sync_descriptor, sync_directory

_PREFIX = ".probe-"

# Errors of flock on a file system without locks. Another error, such as that of a failing disk, says nothing about it.
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP}


class MissingAbilityError(OSError):
    """Raised if a directory cannot do what the program needs. `strerror` says what."""


def check_files(directory: Path) -> list[str]:
    """Check that files in a directory can be created, extended, shortened, replaced, listed and deleted.

    Returns:
      The abilities that are missing but not needed, as parts of a sentence.

    Raises:
      MissingAbilityError: an operation is not supported.
      OSError: no file can be created.
    """
    missing = []
    with _probe_directory(directory) as probe:
        file, replaced = probe / "file", probe / "replaced"
        replaced.write_bytes(b"earlier")
        file.write_bytes(b"one")
        with _needed("append to a file"), file.open("ab") as appended:
            appended.write(b"two")
            appended.flush()
            if not sync_descriptor(appended.fileno()):
                missing.append("synchronize a file to disk")
        with _needed("shorten a file"):
            os.truncate(file, 4)
        with _needed("replace a file by renaming another one"):
            file.rename(replaced)
            if replaced.read_bytes() != b"onet":
                raise OSError(errno.EIO, "the file has another content")
        with _needed("list a directory"):
            if [path.name for path in probe.iterdir()] != ["replaced"]:
                raise OSError(errno.EIO, "the listing is wrong")
        with _needed("synchronize a directory"):
            if not sync_directory(probe):
                missing.append("synchronize a directory to disk")
    return missing


def check_directories(directory: Path) -> None:
    """Check that a directory within `directory` can be renamed with its content, as a complete checkpoint is.

    Raises:
      MissingAbilityError: it cannot.
      OSError: no directory can be created.
    """
    with _probe_directory(directory) as probe:
        (probe / "file").write_bytes(b"content")
        renamed = probe.with_name(f"{probe.name}-renamed")
        try:
            with _needed("rename a directory"):
                probe.rename(renamed)
                if (renamed / "file").read_bytes() != b"content":
                    raise OSError(errno.EIO, "the directory has another content")
        finally:
            shutil.rmtree(renamed, ignore_errors=True)


def why_locks_do_not_work(directory: Path) -> str | None:
    """Return why locks (flock) on files in the directory have no effect, or None if they work.

    This cannot distinguish locks of a single host from locks of all hosts.

    Raises:
      OSError: no file can be created.
    """
    descriptor, name = tempfile.mkstemp(prefix=_PREFIX, dir=directory)
    # It is a file of its own: on some systems, closing a second descriptor of a file drops the process's locks on it.
    second = os.open(name, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        return "two locks on the same file were granted at the same time"
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return f"flock: {error.strerror}"
        raise
    finally:
        os.close(second)
        os.close(descriptor)
        Path(name).unlink(missing_ok=True)


@contextlib.contextmanager
def _probe_directory(directory: Path) -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=directory))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _needed(ability: str) -> Iterator[None]:
    """Name the ability in the error of the `with` block, unless the disk is full."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise MissingAbilityError(
            error.errno, f"its file system cannot {ability} ({error.strerror or error})"
        ) from error
