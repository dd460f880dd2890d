"""Which files a data set consists of. Does not open them (parquet.py)."""

import glob
from dataclasses import dataclass
from pathlib import Path

from core.config.base_config import UserError


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
    path = Path(inputs).expanduser()
    try:
        files = _glob(path)
    except OSError as error:
        raise DataError(f"{inputs}: can't be read: {error.strerror}: {error.filename}") from error
    if not files:
        raise DataError(
            f"{inputs}: no file matches (looked from {Path.cwd()}); give a glob pattern, a file, or a directory "
            "with *.parquet files"
        )
    return Files(files, inputs)


def _glob(path: Path) -> tuple[Path, ...]:
    pattern = glob.escape(str(path)) if path.exists() else str(path)
    if path.is_dir():
        pattern += "/*.parquet"
    matches = glob.glob(pattern, recursive=True)  # noqa: PTH207 - Path.glob takes no absolute pattern
    return tuple(file for file in sorted(map(Path, matches)) if file.is_file())
