"""Divides the staged rows into training, validation and test data, which split_files.py writes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from common.errors import UserError
from common.process.progress import Progress
from projects.home.recap.tools.prepare.columns import ROW, Ingested, IngestedColumn
from projects.home.recap.tools.prepare.database import finite, only_row, scan
from projects.home.recap.tools.prepare.labels import Label, any_is_null, is_number
from projects.home.recap.tools.prepare.row_hash import row_hashes, split_numbers
from projects.home.recap.tools.prepare.split_files import Scratch, Split, SplitWriters

if TYPE_CHECKING:
    import duckdb

_BATCH_ROWS = 65_536
_SPLIT = "split"


@dataclass(frozen=True)
class SplitRule:
    """A rule that divides the rows.

    Attributes:
      by: "time" (the oldest rows train), "group" (a hash of the column) or "row" (a hash of the row).
      column: the column of the time or the group; None for "row".
      shares: shares of the rows in train, validation and test, which sum to 1.
      required: columns of numbers or times without which a row is dropped.
    """

    by: str
    column: IngestedColumn | None
    shares: tuple[float, float, float]
    required: tuple[IngestedColumn, ...] = ()


class OutputColumn(NamedTuple):
    """A column of the output."""

    name: str
    sql: str
    """Its value, from the staged columns."""
    field: pa.Field


def output_columns(ingested: Ingested, labels: Sequence[Label]) -> list[OutputColumn]:
    """Return the columns of the output: those of the input, with labels as int8, then the labels with new names."""
    schema = pq.read_schema(ingested.files[0])
    by_name = {
        column.name: OutputColumn(column.name, column.staged, pa.field(column.name, schema.field(column.staged).type))
        for column in ingested.columns
        if column.staged is not None
    }
    for label in labels:
        by_name[label.name] = OutputColumn(label.name, label.sql, pa.field(label.name, pa.int8(), nullable=False))
    return list(by_name.values())


def write_splits(
    connection: "duckdb.DuckDBPyConnection",
    ingested: Ingested,
    labels: Sequence[Label],
    rule: SplitRule,
    out: Path,
    scratch: Scratch,
) -> dict[str, Split]:
    """Write the rows that have all labels and required columns to train/, validation/ and test/.

    The rows are in the order of time, rows with equal times and all others in the order of the input.

    Args:
      connection: the database.
      ingested: the staged rows.
      labels: labels to write.
      rule: how to divide the rows.
      out: directory in which the directories of the splits are created.
      scratch: files to create for the checks.

    Returns:
      The splits by name.

    Raises:
      UserError: a split would be empty.
    """
    columns = output_columns(ingested, labels)
    condition = f"NOT ({any_is_null(labels)})"
    for column in rule.required:
        condition += f" AND {number_of(column)} IS NOT NULL"
    key, order = "0", ROW
    if rule.by == "time":
        assert rule.column is not None
        time = number_of(rule.column)
        first, second = _time_bounds(connection, ingested, time, condition, rule)
        key, order = f"CASE WHEN {time} < {first} THEN 0 WHEN {time} < {second} THEN 1 ELSE 2 END", f"{time}, {ROW}"
    values = ", ".join(f"{column.sql} AS v{index}" for index, column in enumerate(columns))
    # The staged files are in the order of ROW, and DuckDB preserves it without sorting; _checked() makes sure.
    ordered = f"ORDER BY {order}" if rule.by == "time" else ""
    query = (
        f"SELECT {ROW}, CAST({key} AS TINYINT) AS {_SPLIT}, {values} FROM {scan(ingested.files)} "
        f"WHERE {condition} {ordered}"
    )
    schema = pa.schema([column.field for column in columns])
    group = next((i for i, column in enumerate(columns) if rule.by == "group" and _is_of(column, rule)), None)
    names = [label.name for label in labels]
    with (
        SplitWriters(out, schema, names, rule.shares, ingested.num_rows, scratch) as writers,
        Progress("splitting", ingested.num_rows) as progress,
    ):
        batches = connection.sql(query).to_arrow_reader(_BATCH_ROWS)
        for batch in batches if rule.by == "time" else _checked(batches):
            rows = pa.RecordBatch.from_arrays(
                [_plain(batch.column(2 + index), field.type) for index, field in enumerate(schema)], schema=schema
            )
            hashes = row_hashes(rows.columns)
            if rule.by == "time":
                numbers = batch.column(1).to_numpy()
            else:
                own = hashes if group is None else _group_hashes(rows.column(group), hashes)
                numbers = split_numbers(own, rule.shares)
            writers.write(rows, hashes, numbers)
            progress.add(len(rows))
    splits = writers.splits()
    _check_not_empty(splits, rule)
    return splits


def number_of(column: IngestedColumn) -> str:
    """Return SQL of a column of numbers or times as a number, null where it has none.

    Raises:
      UserError: the column has another type.
    """
    if column.staged is None:
        raise UserError(f"--{column.role} {column.name}: the column has the type {column.found}, which is not read")
    if column.type == "TIMESTAMP_NS":
        return f"epoch_ns({column.staged})"
    if column.type == "DATE" or column.type.startswith("TIMESTAMP"):
        return f"epoch_us({column.staged})"
    if is_number(column.type):
        return finite(column.staged, column.type)
    raise UserError(
        f"--{column.role} {column.name}: the column has the type {column.found}, but it must have numbers"
        f"{' or times' if column.role == 'time' else ''}"
    )


def _is_of(column: OutputColumn, rule: SplitRule) -> bool:
    return rule.column is not None and column.name == rule.column.name


def _group_hashes(group: pa.Array, own: Any) -> Any:
    """Return the hashes of the groups, and those of the rows where the group is null."""
    return np.where(group.is_null().to_numpy(zero_copy_only=False), own, row_hashes([group]))


def _time_bounds(
    connection: "duckdb.DuckDBPyConnection", ingested: Ingested, time: str, condition: str, rule: SplitRule
) -> tuple[str, str]:
    """Return SQL of the first time of validation and that of test, so that rows with equal times are on one side."""
    source = f"FROM {scan(ingested.files)} WHERE {condition}"

    def one(query: str) -> Any:
        return only_row(connection, query)[0]

    num_rows = one(f"SELECT count(*) {source}")
    bounds: list[str] = []
    used = 0
    for share in (rule.shares[0], rule.shares[0] + rule.shares[1]):
        wanted = min(round(share * num_rows), num_rows - 1)
        middle = one(f"SELECT {time} AS t {source} ORDER BY t LIMIT 1 OFFSET {wanted}")
        before = one(f"SELECT count(*) {source} AND {time} < {_number(middle)}")
        after = one(f"SELECT count(*) {source} AND {time} <= {_number(middle)}")
        later = None if after == num_rows else one(f"SELECT min({time}) {source} AND {time} > {_number(middle)}")
        if later is None or (before > used and wanted - before <= after - wanted):
            used, bound = before, middle
        else:
            used, bound = after, later
        bounds.append(_number(bound))
    return bounds[0], bounds[1]


def _number(value: Any) -> str:
    return f"CAST('{value!r}' AS DOUBLE)" if isinstance(value, float) else str(value)


def _checked(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Yield the batches, whose rows must be in the order of the input."""
    last = -1
    for batch in batches:
        numbers = batch.column(0).to_numpy()
        if len(numbers) == 0:
            continue
        assert np.all(np.diff(numbers, prepend=last) > 0), "the rows are not in the order of the input"
        last = int(numbers[-1])
        yield batch


def _plain(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """Return the array with the type that the output has."""
    return array if array.type == kind else array.cast(kind)


def _check_not_empty(splits: Mapping[str, Split], rule: SplitRule) -> None:
    empty = [name for name, split in splits.items() if split.num_rows == 0]
    if not empty:
        return
    counts = ", ".join(f"{split.num_rows:,} {name}" for name, split in splits.items())
    if rule.by == "row":
        raise UserError(f"the split {empty[0]} would be empty ({counts} rows). Prepare more rows, or change --split")
    assert rule.column is not None
    reason = {
        "time": "rows with equal times are in one split",
        "group": "rows of one group are in one split",
    }[rule.by]
    raise UserError(
        f"--{rule.by} {rule.column.name}: the split {empty[0]} would be empty ({counts} rows), because {reason} and "
        f"the column has {rule.column.num_distinct:,} values. Change --split, or omit --{rule.by}"
    )
