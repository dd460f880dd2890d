r"""Defines the formats of text that can be stored with a type: integers, numbers, booleans, dates, lists.

A format applies to a column only if it fits all values. Text is SQL here: {t} stands for the value without blanks
around it. DuckDB's casts alone are too lenient: they read '012' as 12, '1.5' as 2, '1_000' as 1000 and '1e400' as
infinity.
"""

import re
from dataclasses import dataclass

from projects.home.recap.tools.prepare.database import literal

NULL_WORDS = ("", "null", "none", "na", "n/a", "#n/a", "nan", "nil", "?", "-", ".", "\\n", "missing")
"""Texts, in lower case, that mean a missing value if all other values of a column have a format (see fits)."""

_INTEGER = "-?(0|[1-9][0-9]*)"
_FRACTION = r"[+-]?((0|[1-9][0-9]*)?\.[0-9]+|(0|[1-9][0-9]*)\.)"
_EXPONENT = "([eE][+-]?[0-9]+)"
_NUMBER = f"{_FRACTION}{_EXPONENT}?|{_INTEGER}{_EXPONENT}?"
_DATE = r"[0-9]{4}[-/][0-9]{1,2}[-/][0-9]{1,2}"
_TIME = r"[0-9]{1,2}:[0-9]{2}(:[0-9]{2}(\.[0-9]+)?)?"
_ZONE = "( ?(Z|UTC|[+-][0-9]{2}(:?[0-9]{2})?))"


@dataclass(frozen=True)
class TextFormat:
    """A format of text.

    Attributes:
      name: what the values are, as a plural.
      fits: SQL condition of a value; {t} is the value.
      value: SQL of the typed value.
      type: DuckDB's type of it.
      requires: SQL aggregates over the values that fit, which must be true as well.
      choice: what chooses this format where another one, of the same `option`, fits all values too.
      option: option of the command line that chooses between several formats.
    """

    name: str
    fits: str
    value: str
    type: str
    requires: tuple[str, ...] = ()
    choice: str = ""
    option: str = ""


def matches(pattern: str) -> str:
    """Return the SQL condition that the whole value matches a regular expression."""
    return f"regexp_full_match({{t}}, {literal(pattern)})"


_SMALL = f"(length({{t}}) < 19 OR NOT {matches(_INTEGER)} OR TRY_CAST({{t}} AS BIGINT) IS NOT NULL)"

INTEGER = TextFormat("integers", "CAST(TRY_CAST({t} AS BIGINT) AS VARCHAR) = {t}", "TRY_CAST({t} AS BIGINT)", "BIGINT")

NUMBER = TextFormat(
    "numbers",
    # An integer that needs more than 64 bits is an id, which a float would round.
    f"{matches(_NUMBER)} AND isfinite(TRY_CAST({{t}} AS DOUBLE)) AND {_SMALL}",
    "nullif(TRY_CAST({t} AS DOUBLE), 'nan')",
    "DOUBLE",
)

_WITH_POINT = "replace({t}, ',', '.')"
_WITHOUT_COMMA = "replace({t}, ',', '')"

DECIMAL_COMMA = TextFormat(
    "numbers with a decimal comma",
    f"{matches(f'[+-]?(0|[1-9][0-9]*)(,[0-9]+)?{_EXPONENT}?')} AND isfinite(TRY_CAST({_WITH_POINT} AS DOUBLE))",
    f"nullif(TRY_CAST({_WITH_POINT} AS DOUBLE), 'nan')",
    "DOUBLE",
    ("bool_or(contains({t}, ','))",),
    ",",
    "--decimal",
)

THOUSANDS = TextFormat(
    "numbers with commas between thousands",
    matches(r"[+-]?(0|[1-9][0-9]{0,2}(,[0-9]{3})+|[1-9][0-9]*)(\.[0-9]*)?"),
    f"nullif(TRY_CAST({_WITHOUT_COMMA} AS DOUBLE), 'nan')",
    "DOUBLE",
    ("bool_or(contains({t}, ','))",),
    ".",
    "--decimal",
)


def _boolean(true: str, false: str) -> TextFormat:
    return TextFormat(
        f"{true} or {false}",
        f"lower({{t}}) IN ('{true}', '{false}')",
        f"CASE lower({{t}}) WHEN '{true}' THEN true WHEN '{false}' THEN false END",
        "BOOLEAN",
        (f"bool_or(lower({{t}}) = '{true}')", f"bool_or(lower({{t}}) = '{false}')"),
    )


BOOLEANS = tuple(_boolean(*pair) for pair in (("true", "false"), ("t", "f"), ("yes", "no"), ("y", "n")))

DATE = TextFormat("dates", f"{matches(_DATE)} AND TRY_CAST({{t}} AS DATE) IS NOT NULL", "TRY_CAST({t} AS DATE)", "DATE")

TIMESTAMP = TextFormat(
    "times without a zone",
    f"{matches(f'{_DATE}([T ]{_TIME})?')} AND TRY_CAST({{t}} AS TIMESTAMP) IS NOT NULL",
    "TRY_CAST({t} AS TIMESTAMP)",
    "TIMESTAMP",
)

_WITH_OFFSET = (
    r"TRY_CAST(regexp_replace(regexp_replace({t}, ' ?(Z|UTC)$', '+00'), ' ([+-])', '\1') AS TIMESTAMP WITH TIME ZONE)"
)

TIMESTAMP_WITH_ZONE = TextFormat(
    "times with a zone",
    f"{matches(f'{_DATE}([T ]{_TIME}{_ZONE}?)?')} AND {_WITH_OFFSET} IS NOT NULL",
    _WITH_OFFSET,
    "TIMESTAMP WITH TIME ZONE",
)


def _day_and_month(name: str, order: str, choice: str) -> TextFormat:
    formats = [order + time for time in ("", " %H:%M", " %H:%M:%S", " %I:%M %p", " %I:%M:%S %p")]
    slashes = r"regexp_replace({t}, '^([0-9]{1,2})[/.-]([0-9]{1,2})[/.-]', '\1/\2/')"
    value = f"try_strptime({slashes}, [{', '.join(map(literal, formats))}])"
    shape = "|".join(rf"[0-9]{{1,2}}{separator}[0-9]{{1,2}}{separator}[0-9]{{4}}" for separator in ("/", "-", r"\."))
    return TextFormat(
        name,
        f"{matches(f'({shape})( {_TIME}( [AaPp][Mm])?)?')} AND {value} IS NOT NULL",
        value,
        "TIMESTAMP",
        choice=choice,
        option="--date_format",
    )


DAY_FIRST = _day_and_month("dates with the day first", "%d/%m/%Y", "%d/%m/%Y")
MONTH_FIRST = _day_and_month("dates with the month first", "%m/%d/%Y", "%m/%d/%Y")

LIST = TextFormat(
    "lists",
    r"starts_with({t}, '[') AND ends_with({t}, ']') AND TRY_CAST({t} AS VARCHAR[]) IS NOT NULL",
    "TRY_CAST({t} AS VARCHAR[])",
    "VARCHAR[]",
)

TIMES = (DATE, TIMESTAMP, TIMESTAMP_WITH_ZONE, DAY_FIRST, MONTH_FIRST)
NUMBERS = (INTEGER, NUMBER, DECIMAL_COMMA, THOUSANDS)
ALL = (*NUMBERS, *BOOLEANS, *TIMES, LIST)
"""The formats in the order of preference."""


def strptime_format(pattern: str) -> TextFormat:
    """Return the format of times in a format of strptime."""
    has_zone = re.search("%[zZ]", pattern) is not None
    value = f"try_strptime({{t}}, {literal(pattern)})"
    sql_type = "TIMESTAMP WITH TIME ZONE" if has_zone else "TIMESTAMP"
    return TextFormat(
        f"times in the format {pattern}", f"{value} IS NOT NULL", f"CAST({value} AS {sql_type})", sql_type
    )


def why_no_number(text: str) -> str:
    """Return why a text is not a number, as a clause."""
    if re.fullmatch(r"[+-]?0[0-9]+", text):
        return f"{text!r} has a leading zero"
    if re.fullmatch(_INTEGER, text):
        return f"{text[:40]!r} needs more than 64 bits"
    if re.fullmatch(_NUMBER, text):
        return f"{text[:40]!r} is too large for a float64"
    return f"{text[:40]!r} is not a number"
