"""Decides the type of a column of text over all of its values. text_formats.py defines the formats.

A value of a sample that has not the format rules the format out, so that few formats are tried on all values.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from common.reader.files import DataError
from projects.home.recap.tools.prepare.columns import ROW
from projects.home.recap.tools.prepare.database import literal, only_row, scan
from projects.home.recap.tools.prepare.text_formats import (
    ALL,
    INTEGER,
    LIST,
    NULL_WORDS,
    NUMBER,
    TextFormat,
    why_no_number,
)

if TYPE_CHECKING:
    import duckdb

_SAMPLE_ROWS = 5_000
_IS_WORD = f"lower(t) IN ({', '.join(map(literal, NULL_WORDS))})"
_FEW = 0.1
"""Largest share of values without a format of a column that would otherwise have it, for which there is a hint."""


@dataclass(frozen=True)
class TextColumn:
    """A column of text whose type is to be decided.

    Attributes:
      name: name of the column, for messages.
      source: SQL of the text.
      formats: the formats that it may have.
      required: whether a column with another format is an error, and the option or feature that requires one.
      null_values: texts that mean a missing value.
    """

    name: str
    source: str
    formats: Sequence[TextFormat] = ALL
    required: str | None = None
    null_values: tuple[str, ...] = ()


@dataclass(frozen=True)
class TypedText:
    """The type of a column of text.

    Attributes:
      value: SQL of the typed value.
      reason: why, as a clause, or empty.
      note: what the user should know, as a sentence, or None.
      null_words: the values of a column of text that often mean a missing value, such as '?'.
    """

    value: str
    reason: str = ""
    note: str | None = None
    null_words: tuple[str, ...] = ()


class _Check(NamedTuple):
    """Counts the values that fit a format and those that are words such as NULL, and finds the first of the others."""

    values: int
    fitting: int
    words: int
    required: bool
    first_row: int | None
    first: str | None

    @property
    def others(self) -> int:
        """Number of values that neither have the format nor are such words."""
        return self.values - self.fitting - self.words

    @property
    def holds(self) -> bool:
        return self.others == 0 and self.fitting > 0 and self.required


class TextTyper:
    """Decides types of columns of text in staged files."""

    def __init__(
        self,
        connection: "duckdb.DuckDBPyConnection",
        files: Sequence[Path],
        place_of: Callable[[int], str],
    ) -> None:
        """Create an object that decides types.

        Args:
          connection: the database.
          files: Parquet files with the columns as text, and ROW.
          place_of: returns the file and line of a row, for messages.
        """
        self._connection = connection
        self._files = files
        self._place_of = place_of

    def decide(self, column: TextColumn) -> TypedText:
        """Return the type of a column.

        Raises:
          DataError: a value does not have the required format, or the column has two formats that mean different
            values.
        """
        rows = self._rows(column)
        typed = self._decide(column, rows)
        is_text = typed.value == without_null_values(column)
        return replace(typed, null_words=self._null_words(rows)) if is_text else typed

    def _null_words(self, rows: str) -> tuple[str, ...]:
        """Return the most frequent values that often mean a missing value, at most three."""
        words = self._connection.execute(
            f"SELECT text, count(*) FROM {rows} WHERE {_IS_WORD} AND t <> '' GROUP BY text "
            "ORDER BY count(*) DESC, text LIMIT 3"
        ).fetchall()
        return tuple(text for text, _ in words)

    def _rows(self, column: TextColumn) -> str:
        """Return SQL for the rows with a value: the number, the text, and t, the text without blanks around it."""
        text = without_null_values(column)
        return f"(SELECT {ROW}, {text} AS text, trim({text}) AS t FROM {scan(self._files)} WHERE {text} IS NOT NULL)"

    def _decide(self, column: TextColumn, rows: str) -> TypedText:
        if not column.formats:
            return TypedText(without_null_values(column))
        sample = f"(SELECT * FROM {rows} WHERE {ROW} < {_SAMPLE_ROWS})"
        sampled = dict(zip(column.formats, self._check(column.formats, sample), strict=True))
        possible = [each for each, check in sampled.items() if check.others == 0]
        for each in possible:
            (check,) = self._check([each], rows)
            if check.holds:
                self._refuse_ambiguity(column, rows, each, possible)
                return self._typed(column, rows, each, check)
        if column.required is not None:
            return self._empty(column, rows)
        if NUMBER in sampled and sampled[NUMBER].fitting >= sampled[NUMBER].others:
            return self._almost_numbers(column, rows)
        return TypedText(without_null_values(column))

    def _typed(self, column: TextColumn, rows: str, chosen: TextFormat, check: _Check) -> TypedText:
        t = f"trim({without_null_values(column)})"
        value = chosen.value.replace("{t}", t)
        if chosen is LIST:
            return self._list(rows, value)
        reason, note = "", None
        if chosen.option:
            reason = chosen.name
        if check.words:
            reason = f"{check.words:,} texts are missing values"
            words = self._connection.execute(
                f"SELECT text, count(*) FROM {rows} WHERE {_IS_WORD} GROUP BY text ORDER BY count(*) DESC, text LIMIT 3"
            ).fetchall()
            shown = ", ".join(repr(word) for word, _ in words)
            note = (
                f"{column.name}: {check.words:,} values are taken as missing ({shown}), because all others are "
                f"{chosen.name}."
            )
        return TypedText(value, reason, note)

    def _list(self, rows: str, value: str) -> TypedText:
        """Return the type of a column of lists, whose elements are text, integers or numbers."""
        elements = f"(SELECT {ROW}, unnest({LIST.value.replace('{t}', 't')}) AS t FROM {rows})"
        elements = f"(SELECT {ROW}, t AS text, trim(t) AS t FROM {elements} WHERE t IS NOT NULL)"
        for each in (INTEGER, NUMBER):
            (check,) = self._check([each], elements)
            if check.holds:
                cast = f"list_transform({value}, lambda e: {each.value.replace('{t}', 'e')})"
                return TypedText(cast)
        return TypedText(value)

    def _almost_numbers(self, column: TextColumn, rows: str) -> TypedText:
        """Return that a column remains text, and which value is the reason if most values are numbers."""
        text = without_null_values(column)
        (check,) = self._check([NUMBER], rows)
        if check.first is None or check.first_row is None or check.fitting < check.others:
            return TypedText(text)
        why = why_no_number(check.first.strip())
        note = None
        if check.others <= _FEW * check.values and "not a number" in why:
            note = (
                f"{column.name}: {check.others:,} of {check.values:,} values are not numbers, such as {check.first!r} "
                f"({self._place_of(check.first_row)}), so that the column is text. If such texts mean missing "
                f"values, add --null_values {check.first.strip()!r}."
            )
        return TypedText(text, f"text because {why}", note)

    def _empty(self, column: TextColumn, rows: str) -> TypedText:
        """Return a required type for a column that has no values, and raise DataError for one that has others."""
        checks = self._check(column.formats, rows)
        chosen, check = max(zip(column.formats, checks, strict=True), key=lambda pair: pair[1].fitting)
        if check.values == 0:
            return TypedText(column.formats[0].value.replace("{t}", without_null_values(column)))
        if check.first is None or check.first_row is None:
            raise DataError(f"{column.name}: the values are not {chosen.name}, which {column.required} requires")
        others = f"; {check.fitting:,} of {check.values:,} values are {chosen.name}" if check.fitting else ""
        advice = "If this text means a missing value, add it to --null_values"
        if "leading zero" in (why := why_no_number(check.first.strip())) and NUMBER in column.formats:
            advice = f"{why[0].upper()}{why[1:]}, which makes it text, as in an id"
        elif column.required == "--time":
            advice += ". If it is a date, state its format with --date_format"
        raise DataError(
            f"{self._place_of(check.first_row)}: {column.name} is {check.first[:60]!r}, but {column.required} requires "
            f"{_alternatives(column.formats)}{others}. {advice}"
        )

    def _refuse_ambiguity(
        self, column: TextColumn, rows: str, chosen: TextFormat, possible: Sequence[TextFormat]
    ) -> None:
        """Raise DataError if another format of the same option fits all values, too, but gives other values."""
        for other in possible:
            if other is chosen or not chosen.option or other.option != chosen.option:
                continue
            if not self._check([other], rows)[0].holds:
                continue
            one, two = (each.value.replace("{t}", "t") for each in (chosen, other))
            found = self._connection.execute(
                f"SELECT {ROW}, text FROM {rows} WHERE {one} IS DISTINCT FROM {two} ORDER BY {ROW} LIMIT 1"
            ).fetchone()
            if found is not None:
                row, text = found
                raise DataError(
                    f"{self._place_of(row)}: {column.name} is {text!r}, and all values of the column are both "
                    f"{chosen.name} and {other.name}. Choose: {chosen.option} {_choice(column, chosen)} or "
                    f"{chosen.option} {_choice(column, other)}"
                )

    def _check(self, formats: Sequence[TextFormat], rows: str) -> list[_Check]:
        fits = [f"coalesce({each.fits.replace('{t}', 't')}, false) AS fits{i}" for i, each in enumerate(formats)]
        selected = []
        for i, each in enumerate(formats):
            requires = " AND ".join(f"coalesce({need.replace('{t}', 't')}, false)" for need in each.requires) or "true"
            other = f"FILTER (WHERE NOT fits{i} AND NOT {_IS_WORD})"
            selected += [
                "count(*)",
                f"count(*) FILTER (WHERE fits{i})",
                f"count(*) FILTER (WHERE NOT fits{i} AND {_IS_WORD})",
                requires,
                f"min({ROW}) {other}",
                f"arg_min(text, {ROW}) {other}",
            ]
        found = only_row(
            self._connection,
            f"SELECT {', '.join(selected)} FROM (SELECT {ROW}, text, t, {', '.join(fits)} FROM {rows})",
        )
        return [_Check(*found[begin : begin + 6]) for begin in range(0, len(found), 6)]


def without_null_values(column: TextColumn) -> str:
    """Return SQL of the text of a column, null for the texts that mean a missing value."""
    if not column.null_values:
        return column.source
    texts = ", ".join(literal(text.strip()) for text in column.null_values)
    return f"CASE WHEN trim({column.source}) NOT IN ({texts}) THEN {column.source} END"


def _choice(column: TextColumn, chosen: TextFormat) -> str:
    return f"'{column.name}={chosen.choice}'" if chosen.option == "--date_format" else f"'{chosen.choice}'"


def _alternatives(formats: Sequence[TextFormat]) -> str:
    if len(formats) == 1:
        return formats[0].name
    names = {"BIGINT": "integers", "DOUBLE": "numbers", "BOOLEAN": "booleans", "VARCHAR[]": "lists"}
    return " or ".join(dict.fromkeys(names.get(each.type, "dates or times") for each in formats))
