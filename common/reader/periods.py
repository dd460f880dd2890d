"""Defines the units of time that have folders of their own: root/YYYY/MM/DD for a day, root/YYYY/MM/DD/HH for an hour.

dated_folders.py finds the files. This module imports only the standard library, because configurations use it.
"""

import contextlib
import datetime
from dataclasses import dataclass
from pathlib import Path


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
