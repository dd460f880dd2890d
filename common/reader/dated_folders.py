"""Finds files in folders named by date (periods.py).

The caller decides how many folders may be missing.
"""

import datetime
from pathlib import Path

from common.process.paths import user_path
from common.reader.files import (
    DataError,
    Files,
    files_below,
    is_file_or_broken_link,
    unique_files,
    warn_about_hidden,
)
from common.reader.periods import Period


def dated_files(root: str, end: datetime.datetime, count: int, period: Period) -> tuple[Files, list[str]]:
    """Find the *.parquet files of `count` periods, the last of which begins at `end`.

    A file may be at any depth below the folder of its period. Hidden files are skipped, and each file is returned once,
    even if links give it several names. Warnings report both.

    Returns:
      The files, ordered by period (the oldest first) and then by path; and the folders, relative to `root`, that do
      not exist or contain no *.parquet file.

    Raises:
      DataError: `root` or a folder cannot be read.
    """
    paths: list[Path] = []
    hidden: list[Path] = []
    missing: list[str] = []
    folders = [(end - back * period.length).strftime(period.folder) for back in reversed(range(count))]
    directory = user_path(root)
    try:
        directory.stat()
        for folder in folders:
            found, skipped = _parquet_files_below(directory / folder)
            paths += found
            hidden += skipped
            missing += [] if found else [folder]
    except OSError as error:
        raise DataError(
            f"{error.filename}: cannot read this directory: {error.strerror} (current directory: {Path.cwd()})"
        ) from error
    warn_about_hidden(hidden, root)
    # The names of folders sort like their dates.
    return Files(tuple(unique_files(paths, root)), f"{root} ({folders[0]} to {folders[-1]})"), missing


def _parquet_files_below(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the visible *.parquet files, and the hidden ones together with hidden directories."""
    try:
        folder.stat()  # unlike is_dir(), raises every other error
    except (FileNotFoundError, NotADirectoryError):
        return [], []
    if not folder.is_dir():
        return [], []
    files, hidden = files_below(folder)
    return (
        [file for file in files if file.suffix == ".parquet" and is_file_or_broken_link(file)],
        [path for path in hidden if path.suffix == ".parquet" or path.is_dir()],
    )
