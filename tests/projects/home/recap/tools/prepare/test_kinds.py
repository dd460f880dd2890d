import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from projects.home.recap.tools.prepare.columns import IngestedColumn
from tests.support.ingestion import ingested

ROWS = 3000


def column_of(folder: Path, name: str, values: list[Any]) -> IngestedColumn:
    """Return what is known of a column of a Parquet file."""
    pq.write_table(pa.table({name: values}), folder / "part.parquet")
    return ingested(folder / "part.parquet").column(name)


def cycle(values: list[Any], rows: int = ROWS) -> list[Any]:
    return [values[row % len(values)] for row in range(rows)]


def distinct(low: int, step: int = 7, number: int = ROWS // 2) -> list[int]:
    """Return ROWS integers, each of which occurs twice."""
    return cycle([low + step * index for index in range(number)])


NEARLY_UNIQUE = [f"t{row // 2 * 2 if row < 300 else row}" for row in range(ROWS)]


@pytest.mark.parametrize(
    ("name", "values", "kind", "reason"),
    [
        ("price", cycle([1.5, 2.25, None]), "number", "numbers"),
        ("age", cycle(list(range(17, 91))), "number", "integers with 74 values"),
        ("income", distinct(0, 1000), "number", "integers with 1,500 values"),
        ("flag", cycle([0, 1, None]), "boolean", "0 or 1"),
        ("flag", cycle([0, 1, 2]), "number", "integers with 3 values"),
        ("flag", cycle([True, False]), "boolean", "true or false"),
        ("user_id", distinct(100), "category", "integers with 1,500 values, ids by name"),
        ("userID", cycle([5, 6, 7]), "category", "integers with 3 values, ids by name"),
        ("zip code", cycle([10115, 10117, 80331]), "category", "integers with 3 values, ids by name"),
        ("item", distinct(100), "category", "integers with 1,500 values, ids by name"),
        ("item", cycle([1, 2, 3, 4]), "number", "integers with 4 values"),
        ("num_item", distinct(100), "number", "integers with 1,500 values"),
        ("x", distinct(1, 1), "category", "integers with 1,500 values, consecutive ones as of ids"),
        ("x", distinct(2**53), "category", "integers with 1,500 values, too large for numbers"),
        ("user_id", cycle([1.0, 2.0, None]), "category", "whole numbers with 2 values, ids by name"),
        ("user_id", cycle([1.5, 2.0, None]), "number", "numbers"),
        ("row_id", list(range(0, 2 * ROWS, 2)), "unused", "a value of its own in each row"),
        ("Unnamed", list(range(ROWS)), "unused", "a value of its own in each row"),
        ("amount", list(range(0, 3 * ROWS, 3)), "number", "integers with 3,000 values"),
        ("token", [f"t{row}" for row in range(ROWS)], "unused", "a value of its own in each row"),
        ("token", NEARLY_UNIQUE, "unused", "a value of its own in nearly each row"),
        ("token", [f"t{row}" for row in range(50)], "category", "text with 50 values"),
        ("token", [f"t{row}" for row in range(90)] + [None] * ROWS, "category", "text with 90 values"),
        ("city", cycle(["Rom", "Oslo", None]), "category", "text with 2 values"),
        ("text", cycle([f"{row:50}" for row in range(2000)]), "unused", "free text of 50 characters on average"),
        ("url", cycle([f"{row:50}" for row in range(20)]), "category", "text with 20 values"),
        ("constant", cycle([7]), "unused", "always '7'"),
        ("constant", cycle(["x"]), "unused", "always 'x'"),
        ("deleted", cycle(["x", None]), "category", "text with 1 values"),
        ("empty", cycle([None]), "unused", "empty in each row"),
        ("ts", cycle([1_700_000_000, 1_700_000_500]), "timestamp", "integers, seconds since 1970 by name and range"),
        ("created_at", [17 * 10**11, 18 * 10**11], "timestamp", "integers, ms since 1970 by name and range"),
        ("time_on_page", cycle([12, 13]), "number", "integers with 2 values"),
        ("id", cycle([1_700_000_000, 1_700_000_500]), "category", "integers with 2 values, ids by name"),
        ("day", cycle([datetime.date(2026, 1, 1), datetime.date(2026, 1, 2)]), "timestamp", "dates"),
        ("when", cycle([datetime.datetime(2026, 1, 1, 2), datetime.datetime(2026, 1, 2)]), "timestamp", "times"),
        ("tags", cycle([["a"], ["b", "c"], [], None]), "categories", "lists of text with 3 values"),
        ("last_items", cycle([[1], [2, 3]]), "categories", "lists of integers with 3 values"),
        ("tags", cycle([[], None]), "unused", "an empty list in each row"),
        ("vector", cycle([[0.5, 1.5], [0.25, 1.0], None]), "numbers", "vectors of 2 numbers"),
        ("vector", cycle([[0.5] * 16, [0.25] * 16]), "embedding", "vectors of 16 numbers"),
        ("vector", cycle([[0.5], [0.25, 1.0]]), "unused", "vectors of different lengths, from 1 to 2"),
        ("flags", cycle([[True], [False]]), "unused", "lists of boolean, which no kind reads"),
    ],
)  # fmt: skip
def test_the_kind_follows_from_name_type_and_values(tmp_path, name, values, kind, reason):
    column = column_of(tmp_path, name, values)
    assert (column.kind, column.reason) == (kind, reason)


def test_values_demand_further_keys(tmp_path):
    assert column_of(tmp_path, "ts", cycle([1_700_000_000, 1_700_000_500])).settings == {"unit": "seconds"}
    assert column_of(tmp_path, "day", [datetime.date(2026, 1, day) for day in (1, 2)]).settings == {
        "hour_of_day": False
    }
    midnight = [datetime.datetime(2026, 1, day) for day in (1, 2)]
    assert column_of(tmp_path, "day", midnight).settings == {"hour_of_day": False}
    assert column_of(tmp_path, "day", [*midnight, datetime.datetime(2026, 1, 1, 1)]).settings == {}
    assert column_of(tmp_path, "vector", [[0.5] * 3, [1.5] * 3]).settings == {"length": 3}
