"""Which files a data set consists of. Does not open them (parquet.py)."""

import glob
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from common.errors import UserError
from common.process.paths import user_path

UNREADABLE = (OSError, pa.ArrowException, UnicodeDecodeError)
"""What pyarrow raises where a file is no Parquet file, or damaged: the last of a column's name."""


class DataError(UserError):
    """A mistake in the data: the message names the file and, where there is one, column, row group and row."""


@dataclass(frozen=True)
class Files:
    """The files of a data set.

    Attributes:
      paths: in the order in which they are read without shuffling.
      description: what they were chosen by, for the start of a message about all of them.
    """

    paths: tuple[Path, ...]
    description: str


def matching_files(inputs: str) -> Files:
    """Finds files, sorted by their paths; names that begin with a dot are left out where they are not given.

    Args:
      inputs: a glob pattern, a file, or a directory whose *.parquet files are meant. What exists is no pattern.

    Raises:
      DataError: nothing matches, or can't be looked at.
    """
    path = user_path(inputs)
    try:
        files = _glob(path)
    except OSError as error:
        raise DataError(f"{inputs}: can't be read: {error.strerror}: {error.filename}") from error
    if not files:
        deeper = path.is_dir() and next(path.glob("**/*.parquet"), None) is not None
        raise DataError(
            f"{inputs}: no *.parquet file directly in this directory; those below it are {path}/**/*.parquet"
            if deeper
            else f"{inputs}: no file matches (looked from {Path.cwd()}); give a glob pattern, a file, or a directory "
            "with *.parquet files"
        )
    return Files(files, inputs)


def _glob(path: Path) -> tuple[Path, ...]:
    pattern = glob.escape(str(path)) if path.exists() else str(path)
    if path.is_dir():
        pattern += "/*.parquet"
    matches = glob.glob(pattern, recursive=True)  # noqa: PTH207 - Path.glob takes no absolute pattern
    return tuple(filter(is_meant, each_once(map(Path, matches))))


def is_meant(path: Path) -> bool:
    """Whether a path is that of a file, or of a link that leads nowhere: which is told when it is opened."""
    return path.is_file() or (path.is_symlink() and not path.exists())


def each_once(paths: Iterable[Path]) -> list[Path]:
    """The paths, sorted; of those that links make lead to the same file, the first."""
    return sorted({path.resolve(): path for path in sorted(paths, reverse=True)}.values())


def files_below(folder: Path) -> list[Path]:
    """All files at any depth, sorted, those that links lead to once; names that begin with a dot are left out.

    Raises:
      OSError: a directory can't be read.
    """
    files: list[Path] = []
    walked: set[Path] = set()

    def refuse(error: OSError) -> None:
        raise error

    for directory, subdirectories, names in os.walk(folder, onerror=refuse, followlinks=True):
        here = Path(directory)
        subdirectories[:] = [name for name in subdirectories if not name.startswith(".")]
        if here.resolve() in walked:  # a link that leads up would be followed for ever
            subdirectories.clear()
            continue
        walked.add(here.resolve())
        files += [here / name for name in names if not name.startswith(".")]
    return each_once(files)
