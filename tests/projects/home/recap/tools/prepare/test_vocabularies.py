import collections
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.features.config import MAX_VALUES
from projects.home.recap.tools.prepare.database import open_database
from projects.home.recap.tools.prepare.split_files import Split
from projects.home.recap.tools.prepare.vocabularies import ValueCounter

RANDOM = random.Random(0)


def counter_of(connection: Any, folder: Path, table: dict[str, Any]) -> ValueCounter:
    file = folder / "train.parquet"
    pq.write_table(pa.table(table), file)
    return ValueCounter(connection, Split("train", file, len(next(iter(table.values()))), {}, {}), list(table))


@pytest.fixture(params=[1, 2])
def connection(tmp_path, request):
    with open_database(tmp_path / "temporary", threads=request.param) as connection:
        yield connection


def some(values: list[Any], rows: int = 5000) -> list[Any]:
    """Values with some frequent ones, some rare ones and nulls."""
    return [
        None if RANDOM.random() < 0.1 else values[min(int(RANDOM.expovariate(0.1)), len(values) - 1)]
        for _ in range(rows)
    ]


@pytest.mark.parametrize(
    ("values", "sql_type"),
    [
        (some(["", "ü", "z", "Z", "a b", *map(str, range(100))]), "VARCHAR"),
        (some([2**62, -5, *range(100)]), "BIGINT"),
        (some([float(value) for value in range(100)]), "DOUBLE"),
        ([some([1.0, 2.0, 3.0], RANDOM.randrange(3)) or None for _ in range(200)], "DOUBLE[]"),
        (some([True, False]), "BOOLEAN"),
        ([some(["a", "b", *map(str, range(50))], RANDOM.randrange(4)) or None for _ in range(2000)], "VARCHAR[]"),
    ],
    ids=str,
)
def test_a_vocabulary_has_the_frequent_values_in_order(connection, tmp_path, values, sql_type):
    counter = counter_of(connection, tmp_path, {"A": [0] * len(values), "a": values})
    counts = counter.count("a", sql_type, 3)
    flat = [value for row in values for value in row or ()] if sql_type.endswith("[]") else values
    truth = collections.Counter(value for value in flat if value is not None)
    frequent = {value: count for value, count in truth.items() if count >= 3}
    assert (counts.num_values, counts.num_frequent) == (len(truth), len(frequent))
    assert counts.num_occurrences == sum(truth.values())
    assert counts.num_covered == sum(frequent.values())
    assert counter.write_vocabulary(tmp_path / "a.parquet", 3) == len(frequent)
    written = pq.read_table(tmp_path / "a.parquet").to_pydict()
    expected = sorted(frequent.items(), key=lambda item: (-item[1], item[0]))
    assert list(zip(written["value"], written["count"], strict=True)) == expected
    assert written["index"] == list(range(len(expected)))


def test_a_vocabulary_is_limited_to_the_most_frequent_values(connection, tmp_path):
    values = [*range(MAX_VALUES + 10), *range(20, MAX_VALUES + 10)]
    counter = counter_of(connection, tmp_path, {"a": values})
    counts = counter.count("a", "BIGINT", 1)
    assert (counts.num_frequent, counts.num_covered) == (MAX_VALUES + 10, len(values) - 10)
    assert counter.write_vocabulary(tmp_path / "a.parquet", 1) == MAX_VALUES
    written = pq.read_table(tmp_path / "a.parquet").column("value").to_pylist()
    assert written == [*range(20, MAX_VALUES + 10), *range(10)]


def test_a_column_without_values_has_an_empty_vocabulary(connection, tmp_path):
    counter = counter_of(connection, tmp_path, {"a": pa.array([None, None], pa.string())})
    counts = counter.count("a", "VARCHAR", 1)
    assert (counts.num_values, counts.num_occurrences, counts.num_covered) == (0, 0, 0)
