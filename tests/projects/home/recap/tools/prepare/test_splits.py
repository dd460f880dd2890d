import datetime
import struct
from typing import Any

import pyarrow as pa
import pytest
import xxhash

from common.errors import UserError
from projects.home.recap.tools.prepare.split_files import SPLITS
from projects.home.recap.tools.prepare.splits import number_of
from tests.support.split_table import DAY, SHARES, split, table_of, written
from tests.support.staged import staged


def rows_of(table: dict[str, Any]) -> list[tuple[Any, ...]]:
    arrays = [values if isinstance(values, pa.Array) else pa.array(values) for values in table.values()]
    return [
        (*row[:-2], int(row[-2]), int(row[-1])) for row in zip(*(array.to_pylist() for array in arrays), strict=True)
    ]


def fraction(text: str) -> float:
    """The place of a text between 0 and 1: that of its XXH64 with Spark's seed."""
    return xxhash.xxh64_intdigest(text.encode(), 42) / 2**64


def test_equal_rows_are_in_one_split_and_keep_their_order(tmp_path):
    table = table_of(3000, num_times=30)
    splits = written(split(tmp_path / "out", table))
    rows = rows_of(table)
    assert len(set(map(str, rows))) < len(rows)
    where = {str(row): name for name, part in splits.items() for row in part}
    for name, part in splits.items():
        assert part == [row for row in rows if where[str(row)] == name]
    assert sum(map(len, splits.values())) == len(rows)
    assert [len(part) / len(rows) for part in splits.values()] == pytest.approx(SHARES, abs=0.04)


def test_the_rows_of_a_group_are_in_the_split_of_its_hash(tmp_path):
    table = table_of(3000)
    splits = written(split(tmp_path / "out", table, "group", "user", (0.5, 0.25, 0.25)))
    rows = [row for row in rows_of(table) if row[0] is not None]
    bounds = (0, 0.5, 0.75, 1)
    for name, low, high in zip(SPLITS, bounds, bounds[1:], strict=False):
        expected = [row for row in rows if low <= fraction(row[0]) < high]
        assert [row for row in splits[name] if row[0] is not None] == expected
    assert all(any(row[0] is None for row in part) for part in splits.values())  # these are divided by row


def test_groups_of_numbers_are_hashed_as_integers(tmp_path):
    table = table_of(3000)
    table["user"] = [None if number is None else 4 * number for number in table["number"]]
    splits = written(split(tmp_path / "out", table, "group", "user", (0.4, 0.3, 0.3)))
    for name, part in splits.items():
        for user in {row[0] for row in part} - {None}:
            place = xxhash.xxh64_intdigest(struct.pack("<q", int(user)), 42) / 2**64
            assert name == SPLITS[(place >= 0.4) + (place >= 0.7)]


@pytest.mark.parametrize(("num_rows", "num_times"), [(1000, None), (1000, 50), (50, 1000), (2000, 6)])
def test_the_newest_rows_test(tmp_path, num_rows, num_times):
    table = table_of(num_rows, num_times)
    splits = written(split(tmp_path / "out", table, "time", "time", (0.6, 0.2, 0.2)))
    ordered = sorted(rows_of(table), key=lambda row: row[2])  # sorted() keeps the order of rows with equal times
    assert [row for name in SPLITS for row in splits[name]] == ordered
    changes = [place for place in range(1, num_rows) if ordered[place - 1][2] < ordered[place][2]]
    # Each bound is the change of the time that is nearest to the share.
    first, second = (min(changes, key=lambda place: abs(place - wanted * num_rows)) for wanted in (0.6, 0.8))
    assert [len(splits[name]) for name in SPLITS] == [first, second - first, num_rows - second]


@pytest.mark.parametrize(
    "times",
    [
        pa.array(range(100, 0, -1)),
        pa.array([float(number) for number in range(100)]),
        pa.array([DAY.date() + datetime.timedelta(days=number) for number in range(100)]),
        pa.array([DAY.replace(tzinfo=datetime.UTC) + datetime.timedelta(days=n) for n in range(100)]),
    ],
    ids=lambda times: str(times.type),
)
def test_any_time_orders_the_rows(tmp_path, times):
    table = {**table_of(100), "time": times}
    splits = written(split(tmp_path / "out", table, "time", "time"))
    assert [row[2] for name in SPLITS for row in splits[name]] == sorted(times.to_pylist())
    assert [len(part) for part in splits.values()] == [80, 10, 10]


@pytest.mark.parametrize(("by", "column"), [("row", None), ("group", "user"), ("time", "time")])
def test_the_bytes_depend_neither_on_threads_nor_on_files(tmp_path, by, column):
    table = table_of(150_000, num_times=5000)
    one = split(tmp_path / "one", table, by, column)
    other = split(tmp_path / "other", table, by, column, threads=2, files=3)
    for name in SPLITS:
        assert one[name].file.read_bytes() == other[name].file.read_bytes()


def test_rows_without_a_label_or_a_time_are_dropped(tmp_path):
    table = table_of(300)
    table["clicked"] = [None, *table["clicked"][1:]]
    table["time"] = pa.array([*table["time"].to_pylist()[:-1], None], pa.timestamp("us"))
    splits = split(tmp_path / "out", table, "time", "time")
    assert sum(each.num_rows for each in splits.values()) == 298


@pytest.mark.parametrize(
    ("by", "column", "problem"),
    [
        ("row", None, "would be empty ("),
        ("time", "time", "because rows with equal times are in one split and the column has 1 values"),
        ("group", "user", "because rows of one group are in one split and the column has 1 values"),
    ],
)
def test_an_empty_split_is_an_error(tmp_path, by, column, problem):
    table = {**table_of(3), "user": ["a"] * 3, "time": pa.array([DAY] * 3, pa.timestamp("us"))}
    table = {name: values[:1] * 3 if isinstance(values, list) else values for name, values in table.items()}
    table["list"] = [["x"]] * 3
    with pytest.raises(UserError) as caught:
        split(tmp_path / "out", table, by, column)
    assert problem in str(caught.value)


def test_text_is_no_time(tmp_path):
    (column,) = staged(tmp_path, {"when": ["yesterday"]}, roles={"when": "time"}).columns
    with pytest.raises(UserError, match="--time when: the column has the type string, but it must have"):
        number_of(column)
