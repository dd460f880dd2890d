"""Directories of checkpoints: which are complete, and how they are deleted.

A complete checkpoint is a directory `<root>/<step>` with a manifest (writer.py). What is still being written, or was
interrupted, has a hidden name.
"""

import fcntl
import os
import re
import shutil
from pathlib import Path

from common.checkpointing.manifest import MANIFEST, NoCheckpointError

ASIDE = ".writing-"


def complete_steps(root: Path) -> list[int]:
    """Steps of the complete checkpoints under `root`, ascending; [] where there is no such directory."""
    if not root.is_dir():
        return []
    steps = [path for path in root.iterdir() if re.fullmatch(r"0|[1-9][0-9]*", path.name)]
    return sorted(int(path.name) for path in steps if (path / MANIFEST).is_file())


def find_checkpoints(path: Path) -> list[Path]:
    """The complete checkpoints that a path stands for, in the order of their steps: itself, those in it, or those of
    the run whose save_dir it is. Another process may find other ones where the run is still training.

    Raises:
      NoCheckpointError: there is none.
    """
    if (path / MANIFEST).is_file():
        return [path]
    root = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    if steps := complete_steps(root):
        return [root / str(step) for step in steps]
    found = f"no such directory (looked from {Path.cwd()})"
    if path.is_dir():
        left = ", ".join(unfinished(root))
        found = f"no complete checkpoint in {root}"
        found += f"; of saves that were interrupted or go on: {left}" if left else ""
    raise NoCheckpointError(f"{path}: {found}; give the save_dir of a run, its checkpoints, or one of them")


def unfinished(root: Path) -> list[str]:
    """Names of what saves under way, or interrupted ones, have under `root`."""
    return sorted(path.name for path in root.glob(f"{ASIDE}*"))


def remove_unfinished(root: Path) -> None:
    """Removes what interrupted saves left under `root`. One process calls it, while nobody saves."""
    for name in unfinished(root):
        shutil.rmtree(root / name, ignore_errors=True)


def size_on_disk(path: Path) -> int:
    """Bytes of a checkpoint's files."""
    return sum(file.stat().st_size for file in path.iterdir())


def delete_checkpoint(path: Path) -> None:
    """Deletes a checkpoint, whoever reads it. Raises OSError."""
    # Renamed first, so that a half-deleted checkpoint is never taken for a complete one.
    shutil.rmtree(path.rename(path.with_name(f"{ASIDE}{path.name}-deleting")))


def delete_unless_held(path: Path) -> bool:
    """Deletes a checkpoint that no CheckpointReader holds; whether it did. Raises OSError."""
    with (path / MANIFEST).open("r+b") as manifest:
        try:
            fcntl.flock(manifest, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if isinstance(error, BlockingIOError):
                return False
            # Else a file system without locks: nobody has one.
        delete_checkpoint(path)
    return True


def sync_directory(path: Path) -> None:
    """Makes the names in a directory durable. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
