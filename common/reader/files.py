"""Finds the files of a data set. parquet.py opens them."""

import fnmatch
import glob
import logging
import os
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from common.errors import UserError
from common.process.paths import user_path

logger = logging.getLogger(__name__)

READ_ERRORS = (OSError, pa.ArrowException, UnicodeDecodeError)
"""Exceptions that pyarrow raises for a damaged file, or for a file that is not Parquet.

It raises UnicodeDecodeError if a column name is damaged.
"""


class DataError(UserError):
    """An error in the data. The message names the file and, if known, the column, row group and row."""


@dataclass(frozen=True)
class Files:
    """The files of a data set.

    Attributes:
      paths: paths of the files, in stored order.
      description: the pattern or directory that selected the files. Messages about all of them begin with it.
    """

    paths: tuple[Path, ...]
    description: str


def matching_files(inputs: str) -> Files:
    """Find files, sorted by path. Each file is returned once, even if links give it several names.

    Skips hidden files (see visible_files), and logs a warning about them, unless `inputs` is the file's own path.

    Args:
      inputs: a glob pattern, a file, or a directory, which stands for its *.parquet files. A path that exists is not
        treated as a pattern.

    Raises:
      DataError: no file matches, all matching files are hidden, or a directory cannot be read.
    """
    path = user_path(inputs)
    try:
        files = [path] if path.is_file() else _matches(path, inputs)
    except OSError as error:
        raise DataError(f"{inputs}: cannot read {error.filename}: {error.strerror}") from error
    if not files:
        deeper = path.is_dir() and next(path.glob("**/*.parquet"), None) is not None
        raise DataError(
            f"{inputs}: no *.parquet file directly in this directory; to read those in its subdirectories, use "
            f"{path}/**/*.parquet"
            if deeper
            else f"{inputs}: no file matches (current directory: {Path.cwd()}); give a glob pattern, a file, or a "
            "directory with *.parquet files"
        )
    return Files(tuple(files), inputs)


def _matches(path: Path, inputs: str) -> list[Path]:
    base, pattern = split_pattern(path)
    if path.is_dir():
        base, pattern = path, ("*.parquet",)
    visible, hidden = visible_files(paths_matching(base, pattern), base, pattern)
    if hidden and not visible:
        raise DataError(
            f"{inputs}: all {len(hidden)} matching files are skipped, because {_HIDDEN}, such as {hidden[0]}. To read "
            "such a file, give its own path"
        )
    warn_about_hidden(hidden, inputs)
    return unique_files(visible, inputs)


def paths_matching(base: Path, pattern: Sequence[str]) -> set[Path]:
    """Return the paths that match a glob pattern, including hidden ones.

    Unlike glob.glob(), this follows no link to a folder that contains the link, which would never end.

    Args:
      base: folder that the pattern starts in.
      pattern: components of the pattern below `base`. `**` stands for folders at any depth.

    Raises:
      OSError: a folder cannot be read.
    """
    return set(_expand(base, tuple(pattern), frozenset()))


def _expand(folder: Path, pattern: tuple[str, ...], parents: frozenset[Path]) -> Iterator[Path]:
    """Yield the paths below a folder that match. `parents` are the real paths of the folders that `**` has passed."""
    if not pattern:
        yield folder
        return
    component, rest = pattern[0], pattern[1:]
    if component == "**":
        yield from _expand_deeply(folder, pattern, parents)
    elif not glob.has_magic(component):
        if os.path.lexists(folder / component):
            yield from _expand(folder / component, rest, parents)
    elif folder.is_dir():
        for path in folder.iterdir():
            if fnmatch.fnmatchcase(path.name, component):
                yield from _expand(path, rest, parents)


def _expand_deeply(folder: Path, pattern: tuple[str, ...], parents: frozenset[Path]) -> Iterator[Path]:
    """Yield the paths that match a pattern that begins with `**`."""
    if not folder.is_dir():
        return
    rest = pattern[1:]
    parents |= {folder.resolve()}
    yield from _expand(folder, rest, parents)
    for path in folder.iterdir():
        if path.is_dir():
            if path.resolve() not in parents:
                yield from _expand_deeply(path, pattern, parents)
        elif not rest:
            yield path


def split_pattern(path: Path) -> tuple[Path, tuple[str, ...]]:
    """Return the fixed part of a glob pattern, and the other components; a path that exists has no others."""
    fixed = len(path.parts)
    if not path.exists():
        fixed = next((index for index, part in enumerate(path.parts) if glob.has_magic(part)), fixed)
    return Path(*path.parts[:fixed]), path.parts[fixed:]


_HIDDEN_PREFIXES = ("_", ".")
_HIDDEN = "their names, or those of their folders, begin with '_' or '.'"


def visible_files(paths: Iterable[Path], base: Path, pattern: Sequence[str] = ()) -> tuple[list[Path], list[Path]]:
    """Divide the files among `paths` into visible and hidden ones. Directories are dropped.

    A file is hidden if its name, or that of a folder below `base`, begins with `_` or `.`. Spark and other programs
    give such names to unfinished and auxiliary files.

    Args:
      paths: paths below `base`.
      base: folder, or fixed part of a pattern.
      pattern: components of the pattern below `base`. A component that begins with `_` or `.` makes the names visible
        that match it.
    """
    wanted = [part for part in pattern if part.startswith(_HIDDEN_PREFIXES)]

    def is_hidden(path: Path) -> bool:
        names = (name for name in path.relative_to(base).parts if name.startswith(_HIDDEN_PREFIXES))
        return any(not any(fnmatch.fnmatchcase(name, part) for part in wanted) for name in names)

    visible: list[Path] = []
    hidden: list[Path] = []
    for path in sorted(filter(is_file_or_broken_link, paths)):
        (hidden if is_hidden(path) else visible).append(path)
    return visible, hidden


def warn_about_hidden(hidden: Sequence[Path], source: str) -> None:
    """Log a warning if there are hidden files. `source` is the pattern or directory that selected them."""
    if hidden:
        logger.warning("%s: skipped %d path(s), because %s, such as %s", source, len(hidden), _HIDDEN, hidden[0])


def is_file_or_broken_link(path: Path) -> bool:
    """Return whether a path is a file or a broken link. A broken link is kept, so that opening it reports an error."""
    return path.is_file() or (path.is_symlink() and not path.exists())


def unique_files(paths: Iterable[Path], source: str) -> list[Path]:
    """Return each file once, in the given order: of several names of one file, the first is kept.

    Logs a warning if a file has several names, which symbolic and hard links can give it.

    Args:
      paths: paths of files.
      source: the pattern or directory that selected them, for the warning.
    """
    names: dict[Hashable, Path] = {}
    others: list[tuple[Path, Path]] = []
    for path in dict.fromkeys(paths):
        first = names.setdefault(_identity(path), path)
        if first != path:
            others.append((path, first))
    if others:
        message = "%s: %d path(s) are other names of files found, such as %s of %s (links); each file is read once"
        logger.warning(message, source, len(others), *others[0])
    return list(names.values())


def _identity(path: Path) -> Hashable:
    """Return what all names of a file have in common."""
    try:
        status = path.stat()
    except OSError:
        return path  # a broken link
    # Some file systems have no inode numbers.
    return (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(path)


def files_below(folder: Path) -> tuple[list[Path], list[Path]]:
    """Find the files below a folder at any depth. Links are followed.

    Returns:
      The paths of all files that are not hidden (see visible_files), sorted; and the hidden files and directories. The
      latter are not searched.

    Raises:
      OSError: a directory cannot be read.
    """
    files: list[Path] = []
    hidden: list[Path] = []
    walked: set[Path] = set()

    def fail(error: OSError) -> None:
        raise error

    for directory, subdirectories, names in os.walk(folder, onerror=fail, followlinks=True):
        current = Path(directory)
        if current.resolve() in walked:  # a link to a parent directory would be followed forever
            subdirectories.clear()
            continue
        walked.add(current.resolve())
        hidden += [current / name for name in [*subdirectories, *names] if name.startswith(_HIDDEN_PREFIXES)]
        subdirectories[:] = [name for name in subdirectories if not name.startswith(_HIDDEN_PREFIXES)]
        files += [current / name for name in names if not name.startswith(_HIDDEN_PREFIXES)]
    return sorted(files), sorted(hidden)
