"""Finds files in folders named by date: root/YYYY/MM/DD for a day, root/YYYY/MM/DD/HH for an hour.

The caller decides how many folders may be missing.
"""

import contextlib
import datetime
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Period:
    """A unit of time that has its own folder, such as a day.

    Attributes:
      name: name of the unit, for messages.
      length: length of the unit.
      folder: path of its folder below the root, as a format of strftime.
      spellings: ways to write a time in a configuration, as formats of strftime.
    """

    name: str
    length: datetime.timedelta
    folder: str
    spellings: tuple[str, ...]

    def parse(self, text: str) -> datetime.datetime:
        """Return the time at which the period written as `text` begins.

        Raises:
          ValueError: `text` has none of the spellings, or the time does not exist.
        """
        for spelling in self.spellings:
            with contextlib.suppress(ValueError):
                time = datetime.datetime.strptime(text, spelling)
                if time.strftime(spelling) == text:  # strptime also accepts 2023-1-5
                    return time
        examples = [datetime.datetime(2023, 1, 31, 5).strftime(spelling) for spelling in self.spellings]
        raise ValueError(f"not a valid {self.name}; write it as {', '.join(examples[:-1])} or {examples[-1]}")

    @property
    def example(self) -> str:
        """Pattern of its folders below the root, for messages."""
        return self.folder.replace("%Y", "YYYY").replace("%m", "MM").replace("%d", "DD").replace("%H", "HH")

    def is_folder(self, path: Path) -> bool:
        """Return whether a path relative to the root is the folder of a period, or inside one."""
        depth = self.folder.count("/") + 1
        try:
            time = datetime.datetime.strptime("/".join(path.parts[:depth]), self.folder)
        except ValueError:
            return False
        return time.strftime(self.folder) == "/".join(path.parts[:depth])


DAY = Period("day", datetime.timedelta(days=1), "%Y/%m/%d", ("%Y-%m-%d", "%Y/%m/%d"))
HOUR = Period(
    "hour",
    datetime.timedelta(hours=1),
    "%Y/%m/%d/%H",
    tuple(hour + minutes for hour in ("%Y-%m-%dT%H", "%Y-%m-%d %H", "%Y/%m/%d/%H") for minutes in ("", ":00")),
)


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
