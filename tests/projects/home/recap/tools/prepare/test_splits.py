import datetime
import random
import struct
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash

from common.errors import UserError
from common.reader.parquet_file import has_checksum
from projects.home.recap.tools.prepare.database import open_database
from projects.home.recap.tools.prepare.labels import define_labels
from projects.home.recap.tools.prepare.splits import (
    SAMPLE_ROWS,
    SPLITS,
    Scratch,
    Split,
    SplitRule,
    number_of,
    rows_per_group,
    write_splits,
)
from tests.support.staged import staged

SHARES = (0.8, 0.1, 0.1)
DAY = datetime.datetime(2026, 1, 1)


def table_of(num_rows: int, num_times: int | None = None, seed: int = 0) -> dict[str, Any]:
    """A table with equal rows, nulls, and times that are out of order and repeat."""
    chance = random.Random(seed)
    seconds = [chance.randrange(num_times or 10 * num_rows) for _ in range(num_rows)]
    return {
        "user": [chance.choice([None, *"abcdefghijklmnopqrstuvwxyz"]) for _ in range(num_rows)],
        "number": [chance.choice([None, 0.5, 1.0, 2.0]) for _ in range(num_rows)],
        "time": pa.array([DAY + datetime.timedelta(seconds=second) for second in seconds], pa.timestamp("us")),
        "list": pa.array(
            [chance.choice([None, [], ["x"], ["x", None]]) for _ in range(num_rows)], pa.list_(pa.string())
        ),
        "clicked": [chance.randrange(2) for _ in range(num_rows)],
        "bought": [chance.choice([True, False]) for _ in range(num_rows)],
    }


def split(
    folder: Path,
    table: dict[str, Any],
    by: str = "row",
    column: str | None = None,
    shares: tuple[float, float, float] = SHARES,
    threads: int = 1,
    files: int = 1,
) -> dict[str, Split]:
    """Split a table and return the splits by name."""
    folder.mkdir()
    ingested = staged(folder, table, files=files)
    columns = {each.name: each for each in ingested.columns}
    labels = define_labels(ingested, ["clicked", "bought"], [])
    required = (columns["time"],) if by == "time" else ()
    rule = SplitRule(by, None if column is None else columns[column], shares, required)
    with open_database(folder / "temporary", threads) as connection:
        scratch = Scratch(folder / "hashes.parquet", folder / "sample.parquet")
        return write_splits(connection, ingested, labels, rule, folder, scratch)


def rows_of(table: dict[str, Any]) -> list[tuple[Any, ...]]:
    arrays = [values if isinstance(values, pa.Array) else pa.array(values) for values in table.values()]
    return [
        (*row[:-2], int(row[-2]), int(row[-1])) for row in zip(*(array.to_pylist() for array in arrays), strict=True)
    ]


def written(splits: dict[str, Split]) -> dict[str, list[tuple[Any, ...]]]:
    return {
        name: list(zip(*pq.read_table(each.file).to_pydict().values(), strict=True)) for name, each in splits.items()
    }


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


def test_a_split_counts_its_rows_labels_and_nulls(tmp_path):
    table = table_of(2000)
    table["number"] = pa.array([0.5, None, float("nan"), 1.0] * 500)
    splits = split(tmp_path / "out", table)
    for name, part in written(splits).items():
        assert splits[name].num_rows == len(part)
        assert splits[name].positives == {"clicked": sum(row[4] for row in part), "bought": sum(row[5] for row in part)}
        assert splits[name].nulls["user"] == sum(row[0] is None for row in part)
        assert splits[name].nulls["number"] == sum(row[1] is None or row[1] != row[1] for row in part)
        assert splits[name].nulls["clicked"] == 0


def test_rows_without_a_label_or_a_time_are_dropped(tmp_path):
    table = table_of(300)
    table["clicked"] = [None, *table["clicked"][1:]]
    table["time"] = pa.array([*table["time"].to_pylist()[:-1], None], pa.timestamp("us"))
    splits = split(tmp_path / "out", table, "time", "time")
    assert sum(each.num_rows for each in splits.values()) == 298


def test_hashes_are_those_of_all_rows_and_the_sample_is_from_training(tmp_path):
    splits = split(tmp_path / "out", table_of(2000))
    assert pq.read_metadata(tmp_path / "out/hashes.parquet").num_rows == 2000
    train = pq.read_table(splits["train"].file)
    assert pq.read_table(tmp_path / "out/sample.parquet").equals(train)


def test_the_sample_has_rows_at_regular_distances(tmp_path, monkeypatch):
    monkeypatch.setattr("projects.home.recap.tools.prepare.splits.SAMPLE_ROWS", 100)
    assert SAMPLE_ROWS == 200_000
    splits = split(tmp_path / "out", table_of(1000))
    train = pq.read_table(splits["train"].file)
    assert pq.read_table(tmp_path / "out/sample.parquet").equals(train.take(list(range(0, train.num_rows, 8))))


def test_files_have_checksums_and_row_groups_of_regular_size(tmp_path):
    splits = split(tmp_path / "out", table_of(15_000))
    metadata = pq.read_metadata(splits["train"].file)
    sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    assert sizes[:-1] == [4096] * (len(sizes) - 1)
    assert len(sizes) == 3
    for index in range(metadata.num_columns):
        column = metadata.row_group(0).column(index)
        assert has_checksum(splits["train"].file, column)
        assert column.compression == "ZSTD"
    schema = pq.read_schema(splits["train"].file)
    assert (schema.field("clicked").type, schema.field("clicked").nullable) == (pa.int8(), False)


@pytest.mark.parametrize(("num_rows", "expected"), [(1, 4096), (240_000, 10_000), (10**9, 65_536)])
def test_row_groups_grow_with_the_table(num_rows, expected):
    assert rows_per_group(num_rows) == expected


@pytest.mark.parametrize(
    ("by", "column", "problem"),
    [
        ("row", None, "the split validation would be empty (3 train, 0 validation, 0 test rows)"),
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
    assert problem in str(caught.value) or by == "row"


def test_text_is_no_time(tmp_path):
    (column,) = staged(tmp_path, {"when": ["yesterday"]}, roles={"when": "time"}).columns
    with pytest.raises(UserError, match="--time when: the column has the type string, but it must have"):
        number_of(column)
