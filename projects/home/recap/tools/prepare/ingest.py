"""Turns the user's files into staged Parquet files with one type per column, and says what is known of each column.

    files -> rows (Parquet as found, CSV as text) -> types decided over all values -> staged rows -> kinds

Everything larger than a batch of rows is on disk: in files, or in DuckDB's temporary files.
"""

import logging
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Never

import tqdm

from common.errors import UserError
from common.reader.parquet_file import read_footer
from projects.home.recap.tools.prepare.column_types import Use, decide_type, type_group, uses_of_columns
from projects.home.recap.tools.prepare.columns import ROW, Ingested, IngestedColumn, IngestOptions
from projects.home.recap.tools.prepare.database import literal, scan
from projects.home.recap.tools.prepare.input_files import InputFiles
from projects.home.recap.tools.prepare.kinds import Inferred, infer, settings_of
from projects.home.recap.tools.prepare.rows import RawColumn, Rows, open_table, read_rows
from projects.home.recap.tools.prepare.statistics import Statistics, column_statistics
from projects.home.recap.tools.prepare.text_types import TypedText

if TYPE_CHECKING:
    import duckdb

    _Bar = tqdm.tqdm[Never]
else:
    _Bar = tqdm.tqdm

logger = logging.getLogger(__name__)

_LOG_EVERY_S = 10.0
_GROUPS_PER_FILE, _MIN_GROUP = 8, 2048


def ingest(
    connection: "duckdb.DuckDBPyConnection", inputs: InputFiles, staging: Path, options: IngestOptions
) -> Ingested:
    """Read the user's files, and write their rows to staged Parquet files.

    Args:
      connection: an open database.
      inputs: the user's files.
      staging: directory to create.
      options: options of the command line.

    Raises:
      DataError: a file cannot be read, a value cannot be what an option or a feature needs, or a value is ambiguous.
      UserError: an option or a feature names a column that does not exist, or has another type.
    """
    connection.execute("SET TimeZone = 'UTC'")
    _check_date_formats(connection, options)
    table = open_table(inputs, options)
    uses = uses_of_columns([column.name for column in table.columns], options)
    with _bar("reading", inputs.num_bytes, "B") as bar:
        rows = read_rows(table, staging / "rows", bar.update)
    types: list[TypedText | None] = []
    with _bar("types", len(rows.columns), " columns") as bar:
        for index, column in enumerate(rows.columns):
            is_staged = column.type is not None
            types.append(decide_type(connection, rows, index, uses[column.name], options) if is_staged else None)
            bar.update()
    staged = _write_typed(connection, rows, types, staging / "typed")
    described = connection.execute(f"SELECT column_name, column_type FROM (DESCRIBE FROM {scan(staged)})").fetchall()
    sql_types = dict(described)
    columns = []
    with _bar("values", len(rows.columns), " columns") as bar:
        for index, column in enumerate(rows.columns):
            found = _Found(column, f"c{index}", sql_types.get(f"c{index}"), types[index], uses[column.name])
            values = None
            if found.sql_type is not None:
                values = column_statistics(connection, staged, found.staged, found.sql_type)
            columns.append(_describe(found, values, options))
            bar.update()
    notes = [*rows.notes, *(each.note for each in types if each is not None and each.note is not None)]
    notes += _null_word_notes(rows.columns, types, options)
    return Ingested(staged, rows.num_rows, tuple(columns), tuple(notes))


def _null_word_notes(
    columns: Sequence[RawColumn], types: Sequence[TypedText | None], options: IngestOptions
) -> list[str]:
    """Return a note about each text that may mean a missing value but is a value of columns of text."""
    found: dict[str, list[str]] = {}
    for column, typed in zip(columns, types, strict=True):
        if typed is not None and options.kinds.get(column.name) != "unused":
            for word in dict.fromkeys(word.strip() for word in typed.null_words):
                found.setdefault(word, []).append(column.name)
    return [
        f"{word!r} is a value like others in {', '.join(names)}. If it means a missing value, add --null_values "
        f"{shlex.quote(word)}."
        for word, names in found.items()
    ]


def _check_date_formats(connection: "duckdb.DuckDBPyConnection", options: IngestOptions) -> None:
    import duckdb

    for pattern in options.date_formats.values():
        try:
            connection.execute(f"SELECT try_strptime('', {literal(pattern)})")
        except duckdb.Error as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"--date_format {pattern}: this is not a format of strptime: {reason}") from error


def _write_typed(
    connection: "duckdb.DuckDBPyConnection", rows: Rows, types: Sequence[TypedText | None], folder: Path
) -> tuple[Path, ...]:
    """Write the rows with the values that `types` state, remove the rows as read, and return the new files."""
    if all(typed is None or typed.value == f"c{index}" for index, typed in enumerate(types)):
        return rows.files
    folder.mkdir()
    values = ", ".join(f"{typed.value} AS c{index}" for index, typed in enumerate(types) if typed is not None)
    written = []
    with _bar("writing", rows.num_rows, " rows") as bar:
        for file in rows.files:
            written.append(folder / file.name)
            num_rows = read_footer(file).num_rows
            # A file has a limited size, so that this many rows fit into memory however wide they are.
            group = max(_MIN_GROUP, -(-num_rows // _GROUPS_PER_FILE))
            connection.execute(
                f"COPY (SELECT {ROW}, {values} FROM {scan([file])} ORDER BY {ROW}) TO {literal(str(written[-1]))} "
                f"(FORMAT parquet, COMPRESSION lz4_raw, ROW_GROUP_SIZE {group})"
            )
            bar.update(num_rows)
            file.unlink()
    return tuple(written)


class _Found(NamedTuple):
    """A column, and what was found out about it.

    Attributes:
      raw: the column of the input.
      staged: its name in the staged files.
      sql_type: its type there; None if it is not staged.
      typed: how its type was decided; None if it is not staged.
      uses: what reads it.
    """

    raw: RawColumn
    staged: str
    sql_type: str | None
    typed: TypedText | None
    uses: Sequence[Use]


def _describe(found: _Found, values: Statistics | None, options: IngestOptions) -> IngestedColumn:
    """Return what is known of a column. `values` is None for a column that is not staged."""
    raw = found.raw
    _check_uses(found, values)
    role = options.roles.get(raw.name, "feature")
    features = [name for name, feature in options.features.items() if (feature.column or name) == raw.name]
    if values is None or found.sql_type is None or found.typed is None:
        reason = f"{raw.found}, which no kind reads; it is not copied"
        return IngestedColumn(raw.name, None, role, raw.found, "", "unused", reason, 0, 0)
    inferred = infer(raw.name, found.sql_type, values)
    if (chosen := options.kinds.get(raw.name)) is not None:
        if (settings := settings_of(chosen, found.sql_type, values)) is None:
            needs = "a unit" if chosen == "timestamp" else "vectors of one length"
            raise UserError(f"--kind {raw.name} {chosen}: the kind needs {needs}. Configure the column in --features")
        inferred = Inferred(chosen, "as --kind says", settings)
    elif features:
        inferred = Inferred(options.features[features[0]].kind, "configured")
    elif found.typed.reason:
        inferred = replace(inferred, reason=f"{inferred.reason}; {found.typed.reason}")
    return IngestedColumn(
        raw.name,
        found.staged,
        role,
        raw.found,
        found.sql_type,
        inferred.kind,
        inferred.reason,
        values.num_nulls,
        values.num_distinct,
        None if values.low is None else str(values.low),
        None if values.lengths is None else values.lengths[1],
        inferred.settings,
        tuple(features),
    )


def _check_uses(found: _Found, values: Statistics | None) -> None:
    """Raise UserError if a feature or an option cannot read the type of a column."""
    group = "other" if found.sql_type is None else type_group(found.sql_type)
    for use in found.uses:
        is_whole = values is not None and values.is_whole and "text" in use.types  # a category
        if group not in use.types and not (group == "number" and is_whole):
            raise UserError(
                f"{use.reader}: the column {found.raw.name!r} is {found.raw.found}, but it must be "
                f"{' or '.join(sorted(use.types))}"
            )


class _LoggedBar(_Bar):
    """Shows progress as a bar on a terminal, and as log lines elsewhere."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._logged, self._done = time.monotonic(), 0.0
        self._of, self._what = kwargs["total"], f"{kwargs['desc']}{kwargs['unit'].replace('B', ' bytes')}"
        super().__init__(*args, **kwargs)

    def update(self, n: float | None = 1) -> bool | None:
        self._done += n or 0
        if self.disable and (now := time.monotonic()) - self._logged >= _LOG_EVERY_S:
            self._logged = now
            logger.info("%s: %s of %s", self._what, f"{self._done:,.0f}", f"{self._of:,}")
        return super().update(n)


def _bar(description: str, total: int, unit: str) -> _LoggedBar:
    return _LoggedBar(
        desc=description,
        total=total,
        unit=unit,
        unit_scale=True,
        ncols=80,
        leave=False,
        disable=not sys.stderr.isatty(),
    )
