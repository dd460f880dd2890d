"""Reads and checks the files of MovieLens 100K: ratings, users and films.

Reads two layouts of the same data (Harper and Konstan 2015, "The MovieLens Datasets"):

- GroupLens's own layout: `u.data` separates fields with tabs, `u.user` and `u.item` with pipes. `u.item` is Latin-1 and
  has a release date and 19 genre flags.
- `ml-100k.inter`, `ml-100k.user` and `ml-100k.item`: tabs, UTF-8, and a header line of typed names like
  `user_id:token`. They have the year of release and the names of the genres.

tools/movielens.py builds the table for training.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from common.errors import UserError

# fmt: off
GENRES = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)
"""Genres in the order of the flags in u.item."""

OCCUPATIONS = (
    "administrator", "artist", "doctor", "educator", "engineer", "entertainment", "executive", "healthcare",
    "homemaker", "lawyer", "librarian", "marketing", "none", "other", "programmer", "retired", "salesman", "scientist",
    "student", "technician", "writer",
)
# fmt: on

_GROUPLENS = ("u.data", "u.user", "u.item")
_WITH_HEADER = ("ml-100k.inter", "ml-100k.user", "ml-100k.item")

# Film 267 has neither title nor year. ml-100k.item spells it "unkonwn".
_NO_YEAR = ("", "unknown", "unkonwn")


class MovieLens(NamedTuple):
    """The ratings, users and films.

    Ratings are sorted by time, then user, then film. Users and films are sorted by id, and a rating refers to them by
    position.
    """

    user: NDArray[np.int64]
    """Position of the user, [ratings]."""
    item: NDArray[np.int64]
    """Position of the film, [ratings]."""
    rating: NDArray[np.float64]
    """Stars from 1 to 5, [ratings]."""
    timestamp: NDArray[np.int64]
    """Seconds since 1970 (UTC), ascending, [ratings]."""
    age: NDArray[np.int64]
    """Age in years, [users]."""
    is_male: NDArray[np.bool_]
    """True for a male user, [users]."""
    occupation: NDArray[np.int64]
    """Position in OCCUPATIONS, [users]."""
    year: NDArray[np.float64]
    """Year of release, NaN if unknown, [films]."""
    genres: NDArray[np.bool_]
    """Genre flags, [films, GENRES]."""


def read_movielens(directory: Path) -> MovieLens:
    """Read the files in `directory`. Both layouts give the same result.

    Raises:
      UserError: a file is missing or unreadable, or a line is invalid. The message names the file and the line.
    """
    if (directory / _GROUPLENS[0]).exists():
        ratings, users, items = (directory / name for name in _GROUPLENS)
        rating_lines = _lines(ratings, "\t", ["user_id", "item_id", "rating", "timestamp"])
        user_lines = _lines(users, "|", ["user_id", "age", "gender", "occupation", "zip_code"])
        columns = ["item_id", "movie_title", "release_date", "video_release_date", "url", *GENRES]
        item_lines = _lines(items, "|", columns)
    elif (directory / _WITH_HEADER[0]).exists():
        ratings, users, items = (directory / name for name in _WITH_HEADER)
        rating_lines = _lines(ratings, "\t", None)
        user_lines = _lines(users, "\t", None)
        item_lines = _lines(items, "\t", None)
    else:
        raise UserError(
            f"--input {directory}: contains neither {_GROUPLENS[0]} nor {_WITH_HEADER[0]}. Give the directory with "
            f"{', '.join(_GROUPLENS)} (GroupLens's ml-100k.zip, unpacked), or with {', '.join(_WITH_HEADER)}"
        )

    user_fields = _by_id(user_lines, "user_id")
    item_fields = _by_id(item_lines, "item_id")
    user_position = {identity: position for position, identity in enumerate(user_fields)}
    item_position = {identity: position for position, identity in enumerate(item_fields)}
    table = np.array(
        [
            (
                line.position("user_id", user_position, users),
                line.position("item_id", item_position, items),
                line.number("rating", 1, 5),
                line.integer("timestamp"),
            )
            for line in rating_lines
        ],
        dtype=np.float64,  # exact for integers up to 2**53
    ).reshape(-1, 4)
    user, item, rating, timestamp = table[np.lexsort(table.T[[2, 1, 0, 3]])].T
    return MovieLens(
        user=user.astype(np.int64),
        item=item.astype(np.int64),
        rating=rating,
        timestamp=timestamp.astype(np.int64),
        age=np.array([line.integer("age") for line in user_fields.values()], np.int64),
        is_male=np.array([line.one_of("gender", ("F", "M")) for line in user_fields.values()], np.bool_),
        occupation=np.array([line.one_of("occupation", OCCUPATIONS) for line in user_fields.values()], np.int64),
        year=np.array([_year(line) for line in item_fields.values()], np.float64),
        genres=np.array([_genres(line) for line in item_fields.values()], np.bool_).reshape(-1, len(GENRES)),
    )


class _Line(NamedTuple):
    """The fields of a line by column name."""

    where: str
    """File and line number, for messages."""
    fields: Mapping[str, str]

    def error(self, column: str, expected: str) -> UserError:
        """Return an error that names the line, the column, its value, and what is expected."""
        return UserError(f"{self.where}: {column} is {self.fields[column]!r}, expected {expected}")

    def text(self, column: str) -> str:
        """Return a field as text."""
        if column not in self.fields:
            raise UserError(f"{self.where}: no column {column}; the columns are {', '.join(self.fields)}")
        return self.fields[column]

    def number(self, column: str, low: float, high: float) -> float:
        """Return a number from `low` to `high`."""
        text = self.text(column)
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not low <= value <= high:
            raise self.error(column, f"a number from {low:g} to {high:g}")
        return value

    def integer(self, column: str) -> int:
        """Return an integer from 0 to 2**53 - 1. The suffix ".0" is allowed."""
        text = self.text(column).removesuffix(".0")
        if not re.fullmatch(r"0*[0-9]{1,16}", text) or int(text) >= 2**53:
            raise self.error(column, f"an integer from 0 to {2**53 - 1}")
        return int(text)

    def one_of(self, column: str, allowed: tuple[str, ...]) -> int:
        """Return the position of the field in `allowed`."""
        text = self.text(column)
        if text not in allowed:
            raise self.error(column, f"one of {', '.join(allowed)}")
        return allowed.index(text)

    def position(self, column: str, positions: Mapping[int, int], path: Path) -> int:
        """Return the position of an id; `path` is the file that defines the ids."""
        identity = self.integer(column)
        if identity not in positions:
            raise self.error(column, f"an id from {path}")
        return positions[identity]


def _lines(path: Path, separator: str, columns: list[str] | None) -> Iterator[_Line]:
    """Yield the lines of a file, except empty ones.

    Args:
      path: file to read.
      separator: separator of the fields.
      columns: names of the columns. None reads them from a header line of `name:type` fields.

    Raises:
      UserError: the file is unreadable, or a line has the wrong number of fields.
    """
    # GroupLens's own files are Latin-1. Files with a header are UTF-8.
    try:
        text = path.read_text(encoding="utf-8-sig" if columns is None else "latin-1")
    except OSError as error:
        raise UserError(f"{path}: cannot read this file: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: the file is not UTF-8: {error}") from error
    # splitlines() would also split at characters of Latin-1, such as \x85.
    for number, line in enumerate(text.split("\n"), start=1):
        fields = line.removesuffix("\r").split(separator)
        if fields == [""]:
            continue
        if columns is None:
            columns = [field.partition(":")[0] for field in fields]
            continue
        where = f"{path}, line {number}"
        if len(fields) != len(columns):
            expected = f"expected {len(columns)}: {', '.join(columns)}"
            raise UserError(f"{where}: {len(fields)} field(s) found, {expected}")
        yield _Line(where, dict(zip(columns, fields, strict=True)))


def _by_id(lines: Iterator[_Line], column: str) -> dict[int, _Line]:
    """Return the lines by id, in ascending order.

    Raises:
      UserError: two lines have the same id.
    """
    by_id: dict[int, _Line] = {}
    for line in lines:
        identity = line.integer(column)
        if identity in by_id:
            raise UserError(f"{line.where}: duplicate {column} {identity}; {by_id[identity].where} has it too")
        by_id[identity] = line
    return dict(sorted(by_id.items()))


def _year(line: _Line) -> float:
    """Return the year of release, NaN if unknown.

    The year in the title, such as "Braveheart (1995)", takes precedence, because GroupLens's dates are those of the
    release in the United States (Braveheart: 16-Feb-1996). In ml-100k.item the year has moved from the title to
    `release_year`, except for film 1412, "... (1995) (V)", a video, whose `release_year` holds the V.
    """
    in_title = re.findall(r"\((\d{4})\)", line.text("movie_title"))
    if in_title:
        return float(in_title[-1])
    column = "release_date" if "release_date" in line.fields else "release_year"
    year = line.text(column).rpartition("-")[2]
    if year in _NO_YEAR:
        return float("nan")
    if not re.fullmatch(r"\d{4}", year, re.ASCII):
        raise line.error(column, "a year like 1995 or a date like 01-Jan-1995")
    return float(year)


def _genres(line: _Line) -> list[bool]:
    """Return the flags of GENRES."""
    if GENRES[0] in line.fields:
        return [line.one_of(genre, ("0", "1")) == 1 for genre in GENRES]
    names = line.text("class").split()
    if unknown := [name for name in names if name not in GENRES]:
        raise UserError(f"{line.where}: unknown genre {unknown[0]!r}, expected one of {', '.join(GENRES)}")
    return [genre in names for genre in GENRES]
