"""Files in folders that are named by their time: root/YYYY/MM/DD for a day, root/YYYY/MM/DD/HH for an hour.

How many folders may be missing is not decided here.
"""

import contextlib
import datetime
from dataclasses import dataclass
from pathlib import Path

from common.process.paths import user_path
from common.reader.files import DataError, Files, files_below, is_meant


@dataclass(frozen=True)
class Period:
    """A stretch of time that has a folder.

    Attributes:
      name: for messages.
      length: of time.
      folder: its folder below the root, as a format of strftime.
      spellings: how a user may write one, as formats of strftime.
    """

    name: str
    length: datetime.timedelta
    folder: str
    spellings: tuple[str, ...]

    def parse(self, text: str) -> datetime.datetime:
        """Reads the beginning of a period.

        Raises:
          ValueError: `text` is not in one of the spellings, or there is no such time.
        """
        for spelling in self.spellings:
            with contextlib.suppress(ValueError):
                time = datetime.datetime.strptime(text, spelling)
                if time.strftime(spelling) == text:  # strptime takes 2023-1-5 as well
                    return time
        examples = [datetime.datetime(2023, 1, 31, 5).strftime(spelling) for spelling in self.spellings]
        raise ValueError(f"not a valid {self.name}; write it as {', '.join(examples[:-1])} or {examples[-1]}")

    @property
    def example(self) -> str:
        """Its folder below the root, for messages."""
        return self.folder.replace("%Y", "YYYY").replace("%m", "MM").replace("%d", "DD").replace("%H", "HH")

    def is_folder(self, path: Path) -> bool:
        """Whether a path below the root is that of a period's folder, or within one."""
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
    """Finds the *.parquet files of `count` periods, the last of which begins at `end`.

    A file may lie at any depth below its period's folder. Names that begin with a dot are left out.

    Returns:
      the files, the oldest period's first and within a period sorted by their paths; and the folders, below `root`,
      that don't exist or have no such file.

    Raises:
      DataError: a folder, or `root`, can't be read.
    """
    paths: list[Path] = []
    missing: list[str] = []
    folders = [(end - back * period.length).strftime(period.folder) for back in reversed(range(count))]
    directory = user_path(root)
    try:
        directory.stat()
        for folder in folders:
            found = _parquet_files_below(directory / folder)
            paths += found
            missing += [] if found else [folder]
    except OSError as error:
        raise DataError(f"{error.filename}: can't be read: {error.strerror} (looked from {Path.cwd()})") from error
    return Files(tuple(paths), f"{root} ({folders[0]} to {folders[-1]})"), missing


def _parquet_files_below(folder: Path) -> list[Path]:
    try:
        folder.stat()  # is_dir() would hide what else may be wrong with it
    except (FileNotFoundError, NotADirectoryError):
        return []
    if not folder.is_dir():
        return []
    return [file for file in files_below(folder) if file.suffix == ".parquet" and is_meant(file)]
