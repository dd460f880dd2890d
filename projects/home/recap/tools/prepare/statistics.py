"""Computes what kinds.py needs to know about the values of a staged column."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from projects.home.recap.tools.prepare.columns import ROW
from projects.home.recap.tools.prepare.database import only_row, scan

if TYPE_CHECKING:
    import duckdb

# NaN is greater than all numbers.
_MAX = "CAST(3.4028234663852886e38 AS DOUBLE)"
_EXAMPLES_FROM = 10_000
_NUM_EXAMPLES = 3


@dataclass(frozen=True)
class Statistics:
    """The values of a column; of a column of lists, their elements, except for the first three.

    Attributes:
      num_rows: number of rows.
      num_nulls: number of rows without a value, or with a number that is not finite in float32.
      lengths: lowest and highest number of elements of the lists; None for other columns.
      num_values: number of values that are not null.
      num_distinct: number of distinct values.
      low: lowest value; None without values.
      high: highest value; None without values.
      is_whole: whether all values are whole numbers, or times at midnight; False for columns of other types.
      mean_length: mean number of characters of text; 0 for other columns.
      examples: some values as text.
    """

    num_rows: int
    num_nulls: int
    lengths: tuple[int, int] | None
    num_values: int
    num_distinct: int
    low: Any
    high: Any
    is_whole: bool
    mean_length: float
    examples: tuple[str, ...]


def column_statistics(
    connection: "duckdb.DuckDBPyConnection", files: Sequence[Path], staged: str, sql_type: str
) -> Statistics:
    """Return the statistics of a staged column.

    Args:
      connection: the database.
      files: the staged files.
      staged: name of the column in them.
      sql_type: its type in DuckDB.
    """
    rows, lengths = scan(files), None
    element, is_list = sql_type.removesuffix("[]"), sql_type.endswith("[]")
    num_rows, num_nulls = only_row(
        connection, f"SELECT count(*), count(*) - count({_value(staged, sql_type)}) FROM {rows}"
    )
    values = f"(SELECT {ROW}, {_value(staged, element)} AS value FROM {rows})"
    if is_list:
        shortest, longest = only_row(connection, f"SELECT min(len({staged})), max(len({staged})) FROM {rows}")
        lengths = (shortest or 0, longest or 0)
        unnested = f"(SELECT {ROW}, unnest({staged}) AS element FROM {rows})"
        values = f"(SELECT {ROW}, {_value('element', element)} AS value FROM {unnested})"
    is_text, is_float = element == "VARCHAR", element in ("FLOAT", "DOUBLE")
    whole = str("INT" in element).lower()
    if is_float or element.startswith("TIMESTAMP"):
        round_down = "floor(value)" if is_float else "date_trunc('day', value)"
        whole = f"coalesce(bool_and(value = {round_down}), false)"
    mean_length = "coalesce(avg(length(value)), 0)" if is_text else "0"
    low, high = (
        f"{each}(value)" if is_float or "INT" in element else f"CAST({each}(value) AS VARCHAR)"
        for each in ("min", "max")
    )
    num_values, lowest, highest, is_whole, mean = only_row(
        connection, f"SELECT count(value), {low}, {high}, {whole}, {mean_length} FROM {values}"
    )
    (num_distinct,) = only_row(
        connection, f"SELECT count(*) FROM (SELECT DISTINCT value FROM {values} WHERE value IS NOT NULL)"
    )
    examples = connection.execute(
        f"SELECT CAST(value AS VARCHAR) FROM {values} WHERE {ROW} < {_EXAMPLES_FROM} AND value IS NOT NULL "
        f"GROUP BY value ORDER BY min({ROW}), value LIMIT {_NUM_EXAMPLES}"
    ).fetchall()
    shown = tuple(example for (example,) in examples)
    return Statistics(
        num_rows, num_nulls, lengths, num_values, num_distinct, lowest, highest, is_whole, float(mean), shown
    )


def _value(source: str, sql_type: str) -> str:
    """Return SQL of a value, in which numbers that float32 does not hold are null, as they are to a feature."""
    return f"CASE WHEN abs({source}) <= {_MAX} THEN {source} END" if sql_type in ("FLOAT", "DOUBLE") else source
