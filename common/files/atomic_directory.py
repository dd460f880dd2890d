"""Creates a directory that appears only when it is complete. Knows nothing about its contents."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from common.errors import UserError
from common.files.durable import sync_directory, sync_tree

# Every new ext4 disk has this directory.
_NOT_CONTENT = {"lost+found"}


def target_of(out: Path) -> Path:
    """Return the absolute path that `--out` stands for. Links are followed, even to a directory that does not exist.

    Raises:
      UserError: it is not valid UTF-8.
    """
    target = Path(os.path.realpath(out))
    try:
        str(target).encode()
    except UnicodeEncodeError:
        raise UserError(
            f"--out {str(out)!r}: the path {str(target)!r} is not valid UTF-8, so pyarrow cannot write there; choose "
            "another directory"
        ) from None
    return target


@contextlib.contextmanager
def atomic_directory(out: Path) -> Iterator[Path]:
    """Yield a new directory to write to, and move it to `out` when the `with` block ends without an error.

    If `out` does not exist, it appears in one step. If it is an empty directory, which may be a mount point, it stays
    the same directory, and its entries appear one after the other. Links are followed.

    Until then, the new directory is in a hidden one, next to `out` or in it. Before the block runs, an empty directory
    is moved the same way, so that whatever forbids that is reported before any work. After an error, nothing is left,
    not even parents of `out` that this function created.

    Raises:
      UserError: `out` cannot be written, or it exists and is not an empty directory. If it can no longer be written at
        the end, the message names the directory that holds the complete contents.
    """
    target = target_of(out)
    with _reported(out), contextlib.ExitStack() as undo:
        is_new = not _is_empty_directory(out, target)
        where = target.parent if is_new else target
        _create_parents(where, undo)
        hidden = Path(tempfile.mkdtemp(prefix=f".{target.name[:40]}.", dir=where))
        undo.callback(shutil.rmtree, hidden, ignore_errors=True)
        partial = hidden / "complete"
        partial.mkdir()
        trial = target if is_new else where / f"{hidden.name}.trial"
        partial.rename(trial)
        trial.rename(partial)
        yield partial
        sync_tree(partial)
        undo.pop_all()
        try:
            _move(partial, target, is_new)
            sync_directory(target.parent if is_new else target)
        except OSError as error:
            raise UserError(
                f"--out {out}: cannot move the complete files to this directory: {error.strerror}; move them yourself "
                f"from {partial}"
            ) from error
        shutil.rmtree(hidden, ignore_errors=True)


@contextlib.contextmanager
def _reported(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = "" if error.filename in (None, str(out)) else f": {error.filename}"
        reason = f"{error.strerror or error}{where}"
        raise UserError(f"--out {out}: cannot write this directory: {reason}; choose another directory") from error


def _is_empty_directory(out: Path, target: Path) -> bool:
    """Return True for an empty directory, and False if nothing exists. Raise UserError for anything else."""
    try:
        names = {path.name for path in target.iterdir()} - _NOT_CONTENT
    except FileNotFoundError:
        return False
    except NotADirectoryError:
        if not target.exists():  # a parent is a file
            raise
        raise UserError(f"--out {out} already exists and is not a directory; choose another directory") from None
    if names:
        raise UserError(
            f"--out {out} already exists and is not empty (it contains {min(names)!r}); remove it or choose another "
            "directory"
        )
    return True


def _create_parents(folder: Path, undo: contextlib.ExitStack) -> None:
    for parent in reversed([folder, *folder.parents]):
        if not parent.exists():
            parent.mkdir(exist_ok=True)
            undo.callback(_remove_if_empty, parent)


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


def _move(partial: Path, target: Path, is_new: bool) -> None:
    if is_new:
        partial.rename(target)
        return
    for entry in sorted(partial.iterdir()):
        entry.rename(target / entry.name)
