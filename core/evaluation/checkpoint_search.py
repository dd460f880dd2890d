"""Finds the checkpoint that a follower evaluates next, while the run may still be training."""

import dataclasses
from pathlib import Path

from common.checkpointing.directory import complete_steps

# Name, inode, size and modification time of a directory, or of it and its files.
_Stamps = tuple[tuple[str, int, int, int], ...]


@dataclasses.dataclass(frozen=True)
class FoundCheckpoint:
    """A checkpoint as it was when it was found."""

    step: int
    path: Path
    stamps: _Stamps
    """Stamps of the directory. A directory that is created again under the same name has different ones."""
    file_stamps: _Stamps
    """Stamps of the directory and its files. They reveal that a damaged file was replaced in place."""


class CheckpointSearch:
    """Finds each complete checkpoint under `root` once, and again after it was replaced."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._done: dict[int, _Stamps] = {}
        self._damaged: dict[int, _Stamps] = {}

    def find(self) -> FoundCheckpoint | None:
        """Return the checkpoint with the lowest step that is not done, or None."""
        for step in complete_steps(self._root):
            path = self._root / str(step)
            if step in self._damaged:
                is_done = self._damaged[step] == _stamps(path, with_files=True)
            else:
                is_done = step in self._done and self._done[step] == _stamps(path)
            if not is_done:
                stamps, file_stamps = _stamps(path), _stamps(path, with_files=True)
                if stamps is not None and file_stamps is not None:
                    return FoundCheckpoint(step, path, stamps, file_stamps)
        return None

    def done(self, found: FoundCheckpoint, *, is_damaged: bool) -> None:
        """Skip the checkpoint from now on, until its directory is replaced or, if it is damaged, its files change."""
        self._damaged.pop(found.step, None)
        if is_damaged:
            self._damaged[found.step] = found.file_stamps
        else:
            self._done[found.step] = found.stamps


def _stamps(checkpoint: Path, *, with_files: bool = False) -> _Stamps | None:
    """Return the stamps of a checkpoint, or None if it vanishes while they are read."""
    try:
        paths = [checkpoint, *(sorted(checkpoint.iterdir()) if with_files else [])]
        found = [(path.name, path.stat()) for path in paths]
    except FileNotFoundError:
        return None
    return tuple((name, status.st_ino, status.st_size, status.st_mtime_ns) for name, status in found)
