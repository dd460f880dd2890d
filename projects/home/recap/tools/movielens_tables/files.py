"""MovieLens 100K as it is distributed, read and checked: ratings, users and films.

Two layouts of the same data (Harper and Konstan 2015, "The MovieLens Datasets"). GroupLens's own: `u.data` (tab between
fields), `u.user` and `u.item` (pipe; `u.item` is latin-1, with a release date and 19 genre flags). And `ml-100k.inter`,
`ml-100k.user`, `ml-100k.item`: tab, UTF-8, a header line of typed names like `user_id:token`, the year of release and
the genres by name. Does not know what is made of them (movielens.py).
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
"""In the order of u.item's flags."""

OCCUPATIONS = (
    "administrator", "artist", "doctor", "educator", "engineer", "entertainment", "executive", "healthcare",
    "homemaker", "lawyer", "librarian", "marketing", "none", "other", "programmer", "retired", "salesman", "scientist",
    "student", "technician", "writer",
)
# fmt: on

_GROUPLENS = ("u.data", "u.user", "u.item")
_WITH_HEADER = ("ml-100k.inter", "ml-100k.user", "ml-100k.item")

# One film (267) has neither title nor year; the second spelling is that of ml-100k.item.
_NO_YEAR = ("", "unknown", "unkonwn")


class MovieLens(NamedTuple):
    """Ratings by time, ties by user, then film; users and films by id, and a rating refers to them by position."""

    user: NDArray[np.int64]
    """[ratings]: position of the user."""
    item: NDArray[np.int64]
    """[ratings]: position of the film."""
    rating: NDArray[np.float64]
    """[ratings]: 1 to 5 stars."""
    timestamp: NDArray[np.int64]
    """[ratings]: seconds since 1970 (UTC), ascending."""
    age: NDArray[np.int64]
    """[users]: years."""
    is_male: NDArray[np.bool_]
    """[users]."""
    occupation: NDArray[np.int64]
    """[users]: position in OCCUPATIONS."""
    year: NDArray[np.float64]
    """[films]: of release; NaN where it is unknown."""
    genres: NDArray[np.bool_]
    """[films, GENRES]."""


def read_movielens(directory: Path) -> MovieLens:
    """Reads `directory`, in either layout; both give the same.

    Raises:
      UserError: a file is missing or can't be read, or a line is not as it should be; the message names the line.
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
            f"--input {directory}: neither {_GROUPLENS[0]} nor {_WITH_HEADER[0]} is there; give the directory that "
            f"holds {', '.join(_GROUPLENS)} (GroupLens's ml-100k.zip, unpacked), or {', '.join(_WITH_HEADER)}"
        )

    user_fields = _by_id(user_lines, "user_id")
    item_fields = _by_id(item_lines, "item_id")
    user_position = {identity: position for position, identity in enumerate(user_fields)}
    item_position = {identity: position for position, identity in enumerate(item_fields)}
    table = np.array(
        [
            (
                line.known("user_id", user_position, users),
                line.known("item_id", item_position, items),
                line.number("rating", 1, 5),
                line.whole("timestamp"),
            )
            for line in rating_lines
        ],
        dtype=np.float64,  # holds whole numbers up to 2**53
    ).reshape(-1, 4)
    user, item, rating, timestamp = table[np.lexsort(table.T[[2, 1, 0, 3]])].T
    return MovieLens(
        user=user.astype(np.int64),
        item=item.astype(np.int64),
        rating=rating,
        timestamp=timestamp.astype(np.int64),
        age=np.array([line.whole("age") for line in user_fields.values()], np.int64),
        is_male=np.array([line.one_of("gender", ("F", "M")) for line in user_fields.values()], np.bool_),
        occupation=np.array([line.one_of("occupation", OCCUPATIONS) for line in user_fields.values()], np.int64),
        year=np.array([_year(line) for line in item_fields.values()], np.float64),
        genres=np.array([_genres(line) for line in item_fields.values()], np.bool_).reshape(-1, len(GENRES)),
    )


class _Line(NamedTuple):
    """A line's fields by the names of their columns."""

    place: str
    fields: Mapping[str, str]

    def error(self, column: str, expected: str) -> UserError:
        return UserError(f"{self.place}: {column} is {self.fields[column]!r}, {expected} expected")

    def text(self, column: str) -> str:
        if column not in self.fields:
            raise UserError(f"{self.place}: no column {column}; there are {', '.join(self.fields)}")
        return self.fields[column]

    def number(self, column: str, low: float, high: float) -> float:
        """Raises UserError where it is not from `low` to `high`."""
        text = self.text(column)
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not low <= value <= high:
            raise self.error(column, f"a number from {low:g} to {high:g}")
        return value

    def whole(self, column: str) -> int:
        text = self.text(column).removesuffix(".0")
        if not (text.isascii() and text.isdecimal()) or int(text) >= 2**53:
            raise self.error(column, "a whole number")
        return int(text)

    def one_of(self, column: str, allowed: tuple[str, ...]) -> int:
        """The position in `allowed`."""
        text = self.text(column)
        if text not in allowed:
            raise self.error(column, f"one of {', '.join(allowed)}")
        return allowed.index(text)

    def known(self, column: str, positions: Mapping[int, int], path: Path) -> int:
        """The position of the id in this column."""
        identity = self.whole(column)
        if identity not in positions:
            raise self.error(column, f"an id of {path}")
        return positions[identity]


def _lines(path: Path, separator: str, columns: list[str] | None) -> Iterator[_Line]:
    """A file's lines; without `columns` the first line names them, `name:type` each. Empty lines don't count."""
    # GroupLens's files are latin-1, those with a header UTF-8.
    try:
        text = path.read_text(encoding="utf-8" if columns is None else "latin-1")
    except OSError as error:
        raise UserError(f"{path}: can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8: {error}") from error
    # Not splitlines(): latin-1 has letters that it takes for the end of a line.
    for number, line in enumerate(text.split("\n"), start=1):
        fields = line.removesuffix("\r").split(separator)
        if fields == [""]:
            continue
        if columns is None:
            columns = [field.partition(":")[0] for field in fields]
            continue
        place = f"{path}, line {number}"
        if len(fields) != len(columns):
            found = f"{len(fields)} field(s) found, {len(columns)} expected"
            raise UserError(f"{place}: {found}: {', '.join(columns)}")
        yield _Line(place, dict(zip(columns, fields, strict=True)))


def _by_id(lines: Iterator[_Line], column: str) -> dict[int, _Line]:
    """The lines by their id, ascending."""
    found: dict[int, _Line] = {}
    for line in lines:
        identity = line.whole(column)
        if identity in found:
            raise UserError(f"{line.place}: {column} {identity} is in {found[identity].place} already")
        found[identity] = line
    return dict(sorted(found.items()))


def _year(line: _Line) -> float:
    """The year of release.

    That of the title, "Braveheart (1995)", goes first: GroupLens's dates are those of the release in the United States
    (Braveheart: 16-Feb-1996). Titles in ml-100k.item have lost theirs to `release_year`, but for film 1412, "... (1995)
    (V)", a video, where that holds the V.
    """
    in_title = re.findall(r"\((\d{4})\)", line.text("movie_title"))
    if in_title:
        return float(in_title[-1])
    column = "release_date" if "release_date" in line.fields else "release_year"
    year = line.text(column).rpartition("-")[2]
    if year in _NO_YEAR:
        return float("nan")
    if not re.fullmatch(r"\d{4}", year, re.ASCII):
        raise line.error(column, "a year like 1995, or a date like 01-Jan-1995,")
    return float(year)


def _genres(line: _Line) -> list[bool]:
    if GENRES[0] in line.fields:
        return [line.one_of(genre, ("0", "1")) == 1 for genre in GENRES]
    names = line.text("class").split()
    if unknown := [name for name in names if name not in GENRES]:
        raise UserError(f"{line.place}: the genre {unknown[0]!r} is not one of {', '.join(GENRES)}")
    return [genre in names for genre in GENRES]
