"""Decides the staged type of each column: that of text over all values, and others as found."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

import pyarrow.types as pt

from common.errors import UserError
from common.features.config import TimestampFeature
from projects.home.recap.tools.prepare.columns import IngestOptions, Kind, Role
from projects.home.recap.tools.prepare.database import only_row, scan
from projects.home.recap.tools.prepare.names import no_such_column
from projects.home.recap.tools.prepare.rows import RawColumn, Rows
from projects.home.recap.tools.prepare.text_formats import ALL, TextFormat, strptime_format
from projects.home.recap.tools.prepare.text_types import TextColumn, TextTyper, TypedText

if TYPE_CHECKING:
    import duckdb

ANY = frozenset({"integer", "number", "boolean", "text", "time", "list"})

_TYPES: Mapping[Kind, frozenset[str]] = {
    "number": frozenset({"integer", "number", "boolean"}),
    "boolean": frozenset({"integer", "boolean"}),
    "category": frozenset({"integer", "text"}),
    "timestamp": frozenset({"time", "integer"}),
    "numbers": frozenset({"list"}),
    "embedding": frozenset({"list"}),
    "categories": frozenset({"list"}),
}
"""Groups of types that a feature can read, by its kind."""

_ROLE_OPTIONS: Mapping[Role, str] = {
    "label": "--labels",
    "time": "--time",
    "group": "--group",
    "weight": "--weight",
}


_ROLE_TYPES: Mapping[Role, frozenset[str]] = {
    "time": frozenset({"time", "integer", "number"}),
    "weight": frozenset({"integer", "number"}),
}

_GROUPS = {
    "integer": ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT"),
    "number": ("FLOAT", "DOUBLE", "DECIMAL"),
    "boolean": ("BOOLEAN",),
    "text": ("VARCHAR",),
    "time": ("DATE", "TIMESTAMP"),
}


@dataclass(frozen=True)
class Use:
    """A configured feature, or an option, that reads a column.

    Attributes:
      reader: what reads it, for messages.
      types: groups of types that it can read (see type_group).
    """

    reader: str
    types: frozenset[str]


def uses_of_columns(names: Sequence[str], options: IngestOptions) -> dict[str, list[Use]]:
    """Return what reads each column.

    Raises:
      UserError: a column that an option or a feature names does not exist.
    """
    uses: dict[str, list[Use]] = {name: [] for name in names}

    def add(column: str, reader: str, types: frozenset[str]) -> None:
        if column not in uses:
            raise UserError(f"{reader}: {no_such_column(column, names)}")
        uses[column].append(Use(reader, types))

    for column in options.date_formats:
        if column:
            add(column, "--date_format", frozenset({"time"}))
    for column, role in options.roles.items():
        add(column, _ROLE_OPTIONS.get(role, role), _ROLE_TYPES.get(role, ANY))
    for column, kind in options.kinds.items():
        add(column, f"--kind {column} {kind}", _of_kind(column, kind))
    for name, feature in options.features.items():
        reader = f"the feature {name} (kind: {feature.kind})"
        types, column = _TYPES[feature.kind], feature.column or name
        if isinstance(feature, TimestampFeature):
            types = _of_unit(feature.unit)
            if feature.age is not None:
                add(feature.age.before, f"{reader}, age.before", _of_unit(feature.age.before_unit))
        add(column, reader, types)
    return uses


def decide_type(
    connection: "duckdb.DuckDBPyConnection", rows: Rows, column: int, uses: Sequence[Use], options: IngestOptions
) -> TypedText:
    """Return the staged type of a column, and SQL of its values.

    Raises:
      DataError: a value cannot be read by what reads the column, or is ambiguous.
      UserError: the type of the column cannot be read by what reads it.
    """
    raw, source = rows.columns[column], f"c{column}"
    if raw.type is not None and pt.is_string(raw.type):
        return TextTyper(connection, rows.files, rows.place_of).decide(_text_column(raw, source, uses, options))
    return _typed(connection, rows, raw, source)


def type_group(sql_type: str) -> str:
    """Return the group of a type in DuckDB: integer, number, boolean, text, time or list."""
    if sql_type.endswith("[]"):
        return "list"
    for group, start in _GROUPS.items():
        if sql_type.startswith(start):
            return group
    raise ValueError(sql_type)


def _text_column(raw: RawColumn, source: str, uses: Sequence[Use], options: IngestOptions) -> TextColumn:
    """Return the formats that a column of text may have."""
    date_format = options.date_formats.get(raw.name)
    if date_format is not None:
        by_option = f"--date_format {raw.name}={date_format}"
        return TextColumn(raw.name, source, [strptime_format(date_format)], by_option, options.null_values)
    formats: Sequence[TextFormat] = [
        each for each in ALL if each.option != "--decimal" or options.decimal in (None, each.choice)
    ]
    if "" in options.date_formats:
        formats = [strptime_format(options.date_formats[""]), *formats]
    if options.kinds.get(raw.name) == "unused":
        formats = ()
    elif raw.is_typed:  # text in Parquet remains text, unless --time needs times
        formats = [
            each for each in formats if type_group(each.type) == "time" and any(use.reader == "--time" for use in uses)
        ]
    required: str | None = None
    for use in uses:
        formats = [each for each in formats if type_group(each.type) in use.types]
        required = required or (None if "text" in use.types else use.reader)
    return TextColumn(raw.name, source, formats, required, options.null_values)


def _typed(connection: "duckdb.DuckDBPyConnection", rows: Rows, raw: RawColumn, source: str) -> TypedText:
    """Return the staged type of a column that has a type. Integers that int64 does not hold become text."""
    assert raw.type is not None
    is_list = pt.is_list(raw.type)
    element = raw.type.value_type if is_list else raw.type
    if not pt.is_uint64(element) and not (pt.is_decimal(element) and element.scale == 0):
        return TypedText(source)
    extremes = (
        (f"max(list_max({source}))", f"min(list_min({source}))") if is_list else (f"max({source})", f"min({source})")
    )
    found = only_row(connection, f"SELECT {', '.join(extremes)} FROM {scan(rows.files)}")
    high, low = (0 if value is None else int(value) for value in found)
    suffix = "[]" if is_list else ""
    if low >= -(2**63) and high < 2**63:
        return TypedText(source if pt.is_uint64(element) else f"CAST({source} AS BIGINT{suffix})")
    note = f"{raw.name}: the integers, up to {high}, need more than 64 bits with a sign, so that the column is text."
    return TypedText(f"CAST({source} AS VARCHAR{suffix})", "integers of more than 64 bits", note)


def _of_kind(column: str, kind: Kind) -> frozenset[str]:
    if kind not in get_args(Kind):
        raise UserError(f"--kind {column} {kind}: the kinds are {', '.join(get_args(Kind))}")
    return _TYPES.get(kind, ANY)


def _of_unit(unit: str | None) -> frozenset[str]:
    return frozenset({"time"} if unit is None else {"integer"})
