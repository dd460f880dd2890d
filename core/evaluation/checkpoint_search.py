"""Which checkpoint of a run that is still training is to be looked at next."""

import dataclasses
from pathlib import Path

from common.checkpointing.directory import complete_steps

# Name, inode, size and time of a directory, or of it and the files in it.
_Stamps = tuple[tuple[str, int, int, int], ...]


@dataclasses.dataclass(frozen=True)
class FoundCheckpoint:
    """A checkpoint as it was when it was found."""

    step: int
    path: Path
    stamps: _Stamps
    """Of the directory: one that is made anew under the same name is another."""
    file_stamps: _Stamps
    """Also of the files: a damaged one may be replaced in its place."""


class CheckpointSearch:
    """Finds each complete checkpoint under `root` once, and again where it is another one by then."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._done: dict[int, _Stamps] = {}
        self._damaged: dict[int, _Stamps] = {}

    def find(self) -> FoundCheckpoint | None:
        """The first one, by step, that is not done."""
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
        """Leaves it out from now on, as long as its directory is the same; a damaged one as long as its files are."""
        self._damaged.pop(found.step, None)
        if is_damaged:
            self._damaged[found.step] = found.file_stamps
        else:
            self._done[found.step] = found.stamps


def _stamps(checkpoint: Path, *, with_files: bool = False) -> _Stamps | None:
    """None where it vanishes meanwhile."""
    try:
        paths = [checkpoint, *(sorted(checkpoint.iterdir()) if with_files else [])]
        found = [(path.name, path.stat()) for path in paths]
    except FileNotFoundError:
        return None
    return tuple((name, status.st_ino, status.st_size, status.st_mtime_ns) for name, status in found)
