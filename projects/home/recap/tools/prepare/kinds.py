"""Infers the kind of a column from its name, its type and its values. docs/prepare.md lists the rules."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from projects.home.recap.tools.prepare.columns import Kind
from projects.home.recap.tools.prepare.statistics import Statistics

# fmt: off
_ID_WORDS = frozenset((
    "id", "uid", "uuid", "guid", "key", "code", "zip", "zipcode", "postcode", "hash", "sku", "isbn", "asin",
))
"""Last words of the names of columns of integers that are ids."""

_THING_WORDS = frozenset((
    "user", "item", "product", "ad", "advertiser", "campaign", "creative", "publisher", "session", "author", "creator",
    "video", "movie", "film", "song", "track", "artist", "album", "article", "document", "doc", "query", "page",
    "channel", "store", "shop", "seller", "merchant", "customer", "visitor", "device", "brand", "category",
    "subcategory", "genre", "city", "region", "country", "state", "site", "app", "domain",
))
"""Last words of the names of columns of integers that are ids if they have more than a few values."""

_TIME_WORDS = frozenset(("ts", "time", "timestamp", "datetime", "date", "at", "epoch"))
_COUNT_WORDS = frozenset(("n", "num", "number", "count", "total", "avg", "mean", "sum"))
# fmt: on

_FEW_VALUES = 20
_MANY_VALUES = 1000
_OWN_VALUE = 0.9
"""Share of values that are distinct from which on a column has a value of its own in nearly each row."""
_OWN_VALUE_ROWS = 100
"""Number of values up to which a column may have distinct values only."""
_FREE_TEXT_LENGTH, _FREE_TEXT_DISTINCT = 40, 0.5
_EXACT_IN_FLOAT = 2**53
_EMBEDDING_LENGTH = 16

# 1990-01-01 and 2100-01-01 in seconds since 1970.
_EPOCH_LOW, _EPOCH_HIGH = 631_152_000, 4_102_444_800
_EPOCH_UNITS = {"seconds": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


@dataclass(frozen=True)
class Inferred:
    """The kind of a column, why, and the further keys of its configuration that its values demand."""

    kind: Kind
    reason: str
    settings: Mapping[str, str | int] = field(default_factory=dict)


def infer(name: str, sql_type: str, values: Statistics) -> Inferred:
    """Return the kind of a column.

    Args:
      name: name of the column.
      sql_type: its staged type in DuckDB.
      values: its values.
    """
    if values.num_nulls == values.num_rows:
        return Inferred("unused", "empty in each row")
    if values.lengths is not None:
        return _list(sql_type.removesuffix("[]"), values, values.lengths)
    if values.num_distinct == 1 and values.num_nulls == 0:
        return Inferred("unused", f"always {values.examples[0][:40]!r}" if values.examples else "constant")
    if sql_type == "VARCHAR":
        return _text(values)
    if sql_type == "BOOLEAN":
        return Inferred("boolean", "true or false")
    if sql_type == "DATE" or (sql_type.startswith("TIMESTAMP") and values.is_whole):
        return Inferred("timestamp", "dates", {"hour_of_day": False})
    if sql_type.startswith("TIMESTAMP"):
        return Inferred("timestamp", "times")
    if "INT" in sql_type or values.is_whole:
        return _whole(_words(name), sql_type, values)
    return Inferred("number", "numbers")


def settings_of(kind: Kind, sql_type: str, values: Statistics) -> Mapping[str, str | int] | None:
    """Return the further keys that a kind needs which the user chose, or None if the values do not allow any.

    These are the unit of a column of integers that are times, and the length of vectors.
    """
    if kind == "timestamp" and "INT" in sql_type:
        unit = _unit_by_range(values)
        return None if unit is None else {"unit": unit}
    if kind in ("numbers", "embedding") and values.lengths is not None:
        shortest, longest = values.lengths
        return {"length": longest} if shortest == longest else None
    return {"hour_of_day": False} if kind == "timestamp" and (sql_type == "DATE" or values.is_whole) else {}


def _text(values: Statistics) -> Inferred:
    if (own := _own_values(values)) is not None:
        return own
    if values.mean_length >= _FREE_TEXT_LENGTH and values.num_distinct >= _FREE_TEXT_DISTINCT * values.num_values:
        return Inferred("unused", f"free text of {values.mean_length:.0f} characters on average")
    return Inferred("category", f"text with {values.num_distinct:,} values")


def _whole(words: list[str], sql_type: str, values: Statistics) -> Inferred:
    """Return the kind of integers, or of floats that are whole because nulls made them floats."""
    is_integer = "INT" in sql_type
    if is_integer and (unit := _epoch_unit(words, values)) is not None:
        return Inferred("timestamp", f"integers, {unit} since 1970 by name and range", {"unit": unit})
    if is_integer and (values.low, values.high) == (0, 1):
        return Inferred("boolean", "0 or 1")
    own = _own_values(values)
    if own is not None and (words[-1] in _ID_WORDS or values.high - values.low + 1 == values.num_distinct):
        return own
    found = f"{'integers' if is_integer else 'whole numbers'} with {values.num_distinct:,} values"
    if max(abs(values.low), abs(values.high)) > _EXACT_IN_FLOAT:
        return Inferred("category", f"{found}, too large for numbers")
    is_count = not _COUNT_WORDS.isdisjoint(words)
    if words[-1] in _ID_WORDS and not is_count:
        return Inferred("category", f"{found}, ids by name")
    if words[-1] in _THING_WORDS and not is_count and values.num_distinct > _FEW_VALUES:
        return Inferred("category", f"{found}, ids by name")
    span = values.high - values.low + 1
    if values.low in (0, 1) and values.num_distinct > _MANY_VALUES and values.num_distinct >= span / 2:
        return Inferred("category", f"{found}, consecutive ones as of ids")
    return Inferred("number", found)


def _list(element: str, values: Statistics, lengths: tuple[int, int]) -> Inferred:
    shortest, longest = lengths
    if longest == 0:
        return Inferred("unused", "an empty list in each row")
    if element == "VARCHAR" or "INT" in element:
        what = "text" if element == "VARCHAR" else "integers"
        return Inferred("categories", f"lists of {what} with {values.num_distinct:,} values")
    if element not in ("FLOAT", "DOUBLE") and not element.startswith("DECIMAL"):
        return Inferred("unused", f"lists of {element.lower()}, which no kind reads")
    if shortest != longest:
        return Inferred("unused", f"vectors of different lengths, from {shortest} to {longest}")
    if longest >= _EMBEDDING_LENGTH:
        return Inferred("embedding", f"vectors of {longest} numbers", {"length": longest})
    return Inferred("numbers", f"vectors of {longest} numbers", {"length": longest})


def _own_values(values: Statistics) -> Inferred | None:
    if values.num_values <= _OWN_VALUE_ROWS or values.num_distinct < _OWN_VALUE * values.num_values:
        return None
    nearly = "" if values.num_distinct == values.num_values else "nearly "
    return Inferred("unused", f"a value of its own in {nearly}each row")


def _epoch_unit(words: list[str], values: Statistics) -> str | None:
    if words[-1] not in _TIME_WORDS and words[0] not in _TIME_WORDS:
        return None
    return _unit_by_range(values)


def _unit_by_range(values: Statistics) -> str | None:
    for unit, per_second in _EPOCH_UNITS.items():
        if _EPOCH_LOW * per_second <= values.low and values.high < _EPOCH_HIGH * per_second:
            return unit
    return None


def _words(name: str) -> list[str]:
    """Return the words of a name in lower case: userID, user_id and User ID are user and id."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|[^A-Za-z0-9]+", " ", name)
    return spaced.lower().split() or [name]
