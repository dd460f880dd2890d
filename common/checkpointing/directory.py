"""Finds the complete checkpoints in a directory and deletes checkpoints.

A complete checkpoint is a directory `<root>/<step>` that contains a manifest (writer.py). A checkpoint that is being
written, or whose save was interrupted, has a hidden name.
"""

import fcntl
import re
import shutil
from pathlib import Path

from common.checkpointing.manifest import MANIFEST, NoCheckpointError

HIDDEN_PREFIX = ".writing-"


def complete_steps(root: Path) -> list[int]:
    """Return the steps of the complete checkpoints under `root`, in ascending order; [] if it does not exist."""
    if not root.is_dir():
        return []
    steps = [path for path in root.iterdir() if re.fullmatch(r"0|[1-9][0-9]*", path.name)]
    return sorted(int(path.name) for path in steps if (path / MANIFEST).is_file())


def find_checkpoints(path: Path) -> list[Path]:
    """Return the complete checkpoints at `path`, ordered by step.

    `path` can be a checkpoint, a directory of checkpoints, or the save_dir of a run. While the run is still training,
    other processes may find different checkpoints.

    Raises:
      NoCheckpointError: there is no complete checkpoint.
    """
    if (path / MANIFEST).is_file():
        return [path]
    root = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    if steps := complete_steps(root):
        return [root / str(step) for step in steps]
    problem = f"no such directory (current directory: {Path.cwd()})"
    if path.is_dir():
        names = ", ".join(unfinished_saves(root))
        problem = f"no complete checkpoint in {root}"
        problem += f" (saves in progress or interrupted: {names})" if names else ""
    raise NoCheckpointError(
        f"{path}: {problem}; specify the save_dir of a run, its checkpoints directory, or one checkpoint"
    )


def unfinished_saves(root: Path) -> list[str]:
    """Return the names of the directories under `root` whose saves are in progress or were interrupted, sorted."""
    return sorted(path.name for path in root.glob(f"{HIDDEN_PREFIX}*"))


def remove_unfinished(root: Path) -> None:
    """Remove the leftovers of interrupted saves under `root`.

    Only one process may call this, and only while no save is running.
    """
    for name in unfinished_saves(root):
        shutil.rmtree(root / name, ignore_errors=True)


def size_on_disk(path: Path) -> int:
    """Return the total size of a checkpoint's files in bytes."""
    return sum(file.stat().st_size for file in path.iterdir())


def delete_checkpoint(path: Path) -> None:
    """Delete a checkpoint even if it is being read. Raises OSError."""
    # Rename it first, so that a half-deleted checkpoint never looks complete.
    shutil.rmtree(path.rename(path.with_name(f"{HIDDEN_PREFIX}{path.name}-deleting")))


def delete_unless_held(path: Path) -> bool:
    """Delete a checkpoint unless a CheckpointReader holds it. Return whether it was deleted. Raises OSError."""
    with (path / MANIFEST).open("r+b") as manifest:
        try:
            fcntl.flock(manifest, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if isinstance(error, BlockingIOError):
                return False
            # Any other error means that the file system has no locks, so no reader holds one.
        delete_checkpoint(path)
    return True
