"""Finds the files of a data set. parquet.py opens them."""

import glob
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from common.errors import UserError
from common.process.paths import user_path

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
    """Find files, sorted by path.

    Names that begin with a dot are skipped unless they are given explicitly.

    Args:
      inputs: a glob pattern, a file, or a directory, which stands for its *.parquet files. A path that exists is not
        treated as a pattern.

    Raises:
      DataError: no file matches, or a directory cannot be read.
    """
    path = user_path(inputs)
    try:
        files = _glob(path)
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
    return Files(files, inputs)


def _glob(path: Path) -> tuple[Path, ...]:
    pattern = glob.escape(str(path)) if path.exists() else str(path)
    if path.is_dir():
        pattern += "/*.parquet"
    matches = glob.glob(pattern, recursive=True)  # noqa: PTH207 - Path.glob takes no absolute pattern
    return tuple(filter(is_file_or_broken_link, unique_files(map(Path, matches))))


def is_file_or_broken_link(path: Path) -> bool:
    """Return whether a path is a file or a broken link. A broken link is kept, so that opening it reports an error."""
    return path.is_file() or (path.is_symlink() and not path.exists())


def unique_files(paths: Iterable[Path]) -> list[Path]:
    """Return the sorted paths without duplicates; of several links to one file, the first is kept."""
    return sorted({path.resolve(): path for path in sorted(paths, reverse=True)}.values())


def files_below(folder: Path) -> list[Path]:
    """Return all files below a folder at any depth, sorted and without duplicates.

    Links are followed. Names that begin with a dot are skipped.

    Raises:
      OSError: a directory cannot be read.
    """
    files: list[Path] = []
    walked: set[Path] = set()

    def fail(error: OSError) -> None:
        raise error

    for directory, subdirectories, names in os.walk(folder, onerror=fail, followlinks=True):
        current = Path(directory)
        subdirectories[:] = [name for name in subdirectories if not name.startswith(".")]
        if current.resolve() in walked:  # a link to a parent directory would be followed forever
            subdirectories.clear()
            continue
        walked.add(current.resolve())
        files += [current / name for name in names if not name.startswith(".")]
    return unique_files(files)
