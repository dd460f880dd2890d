from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from projects.home.recap.tools.prepare.columns import ROW
from projects.home.recap.tools.prepare.database import open_database
from projects.home.recap.tools.prepare.statistics import Statistics, column_statistics


def statistics_of(folder: Path, values: list[Any], sql_type: str) -> Statistics:
    file = folder / "staged.parquet"
    pq.write_table(pa.table({ROW: range(len(values)), "c0": values}), file, write_statistics=False)
    with open_database(folder / "temporary", threads=1) as connection:
        return column_statistics(connection, [file], "c0", sql_type)


@pytest.mark.parametrize(
    ("values", "sql_type", "nulls", "distinct", "low", "high", "examples"),
    [
        ([2.5, None, float("nan"), float("inf"), 1e300, -1.0, 2.5], "DOUBLE", 4, 2, -1.0, 2.5, ("2.5", "-1.0")),
        (["b", "", None, "a", "b"], "VARCHAR", 1, 3, "", "b", ("b", "", "a")),
        ([[3, 1], None, [], [1, None, 2]], "BIGINT[]", 1, 3, 1, 3, None),
    ],
)
def test_the_values_of_a_column_are_counted(
    tmp_path: Path, values: list[Any], sql_type: str, nulls: int, distinct: int, low: Any, high: Any, examples: Any
):
    found = statistics_of(tmp_path, values, sql_type)
    assert (found.num_rows, found.num_nulls, found.num_distinct) == (len(values), nulls, distinct)
    assert (found.low, found.high) == (low, high)
    assert examples is None or found.examples == examples


def test_lists_have_lengths(tmp_path: Path):
    assert statistics_of(tmp_path, [[3, 1], None, [], [1, None, 2]], "BIGINT[]").lengths == (0, 3)
