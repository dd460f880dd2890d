import dataclasses
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from common.batch import Batch
from common.reader.column import Column, checked_values
from common.reader.files import DataError, matching_files
from common.reader.parquet import BadValue, ParquetTable, RowGroup
from common.reader.reader import BatchReader, Columns

VECTORS = [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0], [10.0, 11.0, 12.0]]


def write(path: Path, columns: dict[str, Any], row_group_size: int = 2) -> Path:
    pq.write_table(pa.table(columns), path, row_group_size=row_group_size)
    return path


def read(path: Path, **columns: Column) -> Columns:
    """Return all rows in stored order, as they appear in a batch."""
    table = ParquetTable(matching_files(str(path)), dict(columns.items()))
    reader = BatchReader(table, Rows, global_batch_size=table.num_rows, lanes=1)
    (item,) = reader.evaluate()
    return item.batch.columns


@dataclasses.dataclass(frozen=True)
class Rows(Batch):
    columns: Columns
    weights: torch.Tensor


def error_of(path: Path, *columns: Column) -> str:
    with pytest.raises(DataError) as caught:
        read(path, **{f"key {column.name}": column for column in columns})
    return str(caught.value)


# Row groups.


def test_files_are_read_in_order_of_path(tmp_path):
    for number in (2, 0, 1):
        write(tmp_path / f"part-{number}.parquet", {"x": [number, number + 10, number + 20]})
    assert read(tmp_path, x=Column("x"))["x"].tolist() == [0, 10, 20, 1, 11, 21, 2, 12, 22]


def test_rows_per_group_with_empty_row_groups(tmp_path):
    schema = pa.schema([("x", pa.int64())])
    with pq.ParquetWriter(tmp_path / "a.parquet", schema) as writer:
        for values in ([1, 2, 3], [], [4]):
            writer.write_table(pa.table({"x": pa.array(values, pa.int64())}))
    write(tmp_path / "b.parquet", {"x": pa.array([], pa.int64())})
    write(tmp_path / "c.parquet", {"x": [5]})
    table = ParquetTable(matching_files(str(tmp_path)), {"x": Column("x", torch.int64)})
    rows = table.rows_per_group.tolist()
    assert [count for count in rows if count] == [3, 1, 1]
    assert 0 in rows
    assert table.num_rows == 5
    decoded = [table.decode(group)["x"] for group in range(len(rows))]
    assert [len(group) for group in decoded] == rows
    assert np.concatenate(decoded).tolist() == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("groups", [0, 1])
def test_no_rows(tmp_path, groups):
    with pq.ParquetWriter(tmp_path / "a.parquet", pa.schema([("x", pa.int64())])) as writer:
        for _ in range(groups):
            writer.write_table(pa.table({"x": pa.array([], pa.int64())}))
    with pytest.raises(DataError, match=r"1 file\(s\) with no rows"):
        ParquetTable(matching_files(str(tmp_path)), {"x": Column("x")})


def test_fingerprint_depends_on_data_and_not_on_the_folder(tmp_path):
    def fingerprint(folder: str, name: str, rows: int, row_group_size: int) -> str:
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / name, {"x": list(range(rows))}, row_group_size)
        return ParquetTable(matching_files(str(tmp_path / folder)), {}).fingerprint

    first = fingerprint("one", "a.parquet", 9, 4)
    assert fingerprint("moved", "a.parquet", 9, 4) == first
    other_name = fingerprint("2", "b.parquet", 9, 4)
    fewer_rows = fingerprint("3", "a.parquet", 8, 4)
    other_groups = fingerprint("4", "a.parquet", 9, 3)
    assert len({first, other_name, fewer_rows, other_groups}) == 4


@pytest.fixture
def three_files(tmp_path: Path) -> Path:
    """Rows 0 to 9, an empty row group, and rows 10 to 14; in row groups of 4."""
    write(tmp_path / "a.parquet", {"x": list(range(10))}, row_group_size=4)
    write(tmp_path / "b.parquet", {"x": pa.array([], pa.int64())})
    write(tmp_path / "c.parquet", {"x": list(range(10, 15))}, row_group_size=4)
    return tmp_path


def ranged(folder: Path, rows: range | None) -> ParquetTable:
    files = matching_files(str(folder))
    return ParquetTable(files, {"x": Column("x")}, rows=None if rows is None else lambda _: rows)


def test_range_of_rows(three_files):
    for start in range(15):
        for stop in range(start + 1, 16):
            chosen = range(start, stop)
            table = ranged(three_files, chosen)
            groups = [table.decode(group)["x"].tolist() for group in range(len(table.rows_per_group))]
            assert [row for group in groups for row in group] == list(chosen)
            assert [len(group) for group in groups] == table.rows_per_group.tolist()
            assert table.num_rows == len(chosen)
            # Row groups outside the range are absent. They hold rows 0-3, 4-7, 8-9, 10-13 and 14.
            assert len([group for group in groups if group]) == len(set(np.digitize(chosen, [4, 8, 10, 14])))
            assert groups[0]
            assert groups[-1]


def test_row_groups_outside_a_range_are_not_decoded(tmp_path):
    path = write(tmp_path / "a.parquet", {"x": [5, 0, 0, 1, 1, 5]})
    label: dict[Hashable, Column] = {"x": Column("x", torch.int64, values="label")}
    table = ParquetTable(matching_files(str(path)), label, rows=lambda num_rows: range(2, num_rows - 2))
    assert table.decode(0)["x"].tolist() == [0, 1]
    assert len(table.rows_per_group) == 1


def test_fingerprint_depends_on_the_range(three_files):
    assert ranged(three_files, range(15)).fingerprint == ranged(three_files, None).fingerprint
    ranges = (None, range(14), range(1, 15), range(1, 14))
    assert len({ranged(three_files, rows).fingerprint for rows in ranges}) == 4


# Errors in metadata, which are raised when a table is opened.


def opening_error(path: Path, *columns: Column) -> str:
    with pytest.raises(DataError) as caught:
        ParquetTable(matching_files(str(path)), {column.name: column for column in columns})
    return str(caught.value)


def test_missing_column_in_the_second_file(tmp_path):
    write(tmp_path / "a.parquet", {"x": [1], "y": [1]})
    second = write(tmp_path / "b.parquet", {"z.w": [1], "x": [1]})
    assert opening_error(tmp_path, Column("x"), Column("y")) == (
        f"{second}: no column 'y', or more than one; columns found: x, z.w"
    )


@pytest.mark.parametrize(
    ("values", "column", "problem"),
    [
        (pa.array(["1"]), Column("x"), "found string, expected numbers"),
        (pa.array([None]), Column("x"), "found null, expected numbers"),
        (pa.array([["1"]]), Column("x", width=1), "found list<element: string>, expected numbers"),
        (pa.array([[1.0]]), Column("x"), "found list<element: double>, expected one value per row"),
        (pa.array([1.0]), Column("x", width=1), "found double, expected lists of 1 values"),
        (pa.array([1.0]), Column("x", torch.int64), "found double, expected integers"),
        (pa.array([[1.0]]), Column("x", torch.int64, 1), "found list<element: double>, expected integers"),
        (pa.array([[1, 2]], pa.list_(pa.int32(), 2)), Column("x", width=3), "found lists of 2 values, expected 3"),
        (pa.array([{"a": 1}]), Column("x"), "found struct<a: int64>, expected numbers"),
    ],
)
def test_wrong_type_or_width(tmp_path, values, column, problem):
    path = write(tmp_path / "a.parquet", {"x": values})
    assert opening_error(path, column) == f"{path}: column 'x': {problem}"


@pytest.mark.parametrize("cut", ["empty", "header", "half", "last byte", "garbage"])
def test_file_that_is_not_valid_parquet(tmp_path, cut):
    path = write(tmp_path / "a.parquet", {"x": list(range(1000))})
    whole = path.read_bytes()
    path.write_bytes(
        {
            "empty": b"",
            "header": whole[:4],
            "half": whole[: len(whole) // 2],
            "last byte": whole[:-1],
            "garbage": bytes(1000),
        }[cut]
    )
    assert opening_error(path, Column("x")).startswith(f"{path}: cannot read this file as Parquet: ")


# Values.

FLOATS = [pa.float16(), pa.float32(), pa.float64()]
INTEGERS = [pa.int8(), pa.uint8(), pa.int16(), pa.int32(), pa.int64(), pa.uint64()]


@pytest.mark.parametrize("source", [*FLOATS, *INTEGERS, pa.bool_()], ids=str)
def test_plain_columns(tmp_path, source):
    values = [True, False, True] if source == pa.bool_() else [np.float16(3), np.float16(0), np.float16(1)]
    path = write(tmp_path / "a.parquet", {"x": pa.array(values).cast(source)})
    expected = torch.tensor([float(value) for value in values])
    decoded = read(path, x=Column("x"))["x"]
    assert decoded.dtype == torch.float32
    assert torch.equal(decoded, expected)
    if not pa.types.is_floating(source):
        decoded = read(path, x=Column("x", torch.int64))["x"]
        assert decoded.dtype == torch.int64
        assert torch.equal(decoded, expected.long())


@pytest.mark.parametrize("value", [pa.float16(), pa.float32(), pa.float64(), pa.int64(), pa.uint8()], ids=str)
@pytest.mark.parametrize("kind", ["list", "large_list", "fixed_size_list"])
@pytest.mark.parametrize("keep", [None, 2, 3])
def test_list_columns(tmp_path, value, kind, keep):
    values = pa.array(np.array(VECTORS, np.float16).reshape(-1)).cast(value)
    offsets = [0, 3, 6, 9, 12]
    array = {
        "list": lambda: pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values),
        "large_list": lambda: pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), values),
        "fixed_size_list": lambda: pa.FixedSizeListArray.from_arrays(values, 3),
    }[kind]()
    path = write(tmp_path / "a.parquet", {"x": array}, row_group_size=3)
    assert pa.types.is_large_list(pq.read_schema(path).field("x").type) == (kind == "large_list")
    decoded = read(path, x=Column("x", width=3, keep=keep))["x"]
    assert torch.equal(decoded, torch.tensor(VECTORS)[:, :keep])


def checked(chunks: pa.ChunkedArray, column: Column) -> np.ndarray:
    return checked_values(chunks, pa.field("x", chunks.type), column, "here")


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.float32()), pa.large_list(pa.float64()), pa.list_(pa.float32(), 3)], ids=str
)
def test_chunked_and_sliced_arrays(kind):
    array = pa.array([[-1.0, -1.0, -1.0], *VECTORS, [99.0, 99.0, 99.0]], kind)
    chunks = pa.chunked_array([array.slice(1, 2), array.slice(3, 0), array.slice(3, 2)])
    for chunked in (chunks, pa.chunked_array([array.slice(1, 4)]), pa.chunked_array([array]).slice(1, 4)):
        assert checked(chunked, Column("x", width=3)).tolist() == VECTORS
    plain = pa.chunked_array([pa.array([0, 1, 2]).slice(1), pa.array([3])])
    assert checked(plain, Column("x", torch.int64)).tolist() == [1, 2, 3]


def test_error_in_a_sliced_array_names_the_row_of_the_slice():
    kind = pa.list_(pa.float32())
    chunks = pa.chunked_array([pa.array([[1.0], [1.0, 2.0], [1.0, None]], kind).slice(1)])
    with pytest.raises(DataError, match=r"^here, row 1 .*: found null in a list"):
        checked(chunks, Column("x", width=2))


def test_batches_own_their_memory(tmp_path):
    path = write(tmp_path / "a.parquet", {"x": pa.array(VECTORS, pa.list_(pa.float32(), 3))}, row_group_size=4)
    table = ParquetTable(matching_files(str(path)), {"x": Column("x", width=3)}, cache=True)
    for _ in range(2):
        (item,) = BatchReader(table, Rows, global_batch_size=4, lanes=1).evaluate()
        assert item.batch.columns["x"].tolist() == VECTORS
        item.batch.columns["x"].zero_()


def test_nan_and_values_beyond_float32_reach_the_model(tmp_path):
    path = write(tmp_path / "a.parquet", {"x": [float("nan"), 1e300, -1e300, float("inf")]})
    np.testing.assert_array_equal(read(path, x=Column("x"))["x"].numpy(), [np.nan, np.inf, -np.inf, np.inf])


@pytest.mark.parametrize("kind", [pa.list_(pa.int64()), pa.list_(pa.uint8(), 2), pa.list_(pa.uint64())], ids=str)
def test_ids_out_of_range_are_reported_with_position_and_row(tmp_path, kind):
    path = write(tmp_path / "a.parquet", {"x": pa.array([[0, 9], [4, 200], [4, 9], [5, 9]], kind)}, row_group_size=3)
    column = Column("x", torch.int64, 2, num_ids={0: 5})
    table = ParquetTable(matching_files(str(path)), {"x": column})
    assert table.decode(0)["x"].tolist() == [[0, 9], [4, 200], [4, 9]], "position 1 holds anything"
    with pytest.raises(DataError) as caught:
        table.decode(1)
    assert str(caught.value) == (
        f"{path}: row group 1, row 0 (both counted from 0): column 'x': "
        "found 5 at position 0, but ids must be between 0 and 4"
    )


def test_negative_ids(tmp_path):
    path = write(tmp_path / "a.parquet", {"x": [[3, -1]]})
    with pytest.raises(DataError, match="found -1 at position 1, but ids must be between 0 and 6"):
        read(path, x=Column("x", torch.int64, 2, num_ids={0: 7, 1: 7}))


def test_two_keys_may_share_a_column(tmp_path):
    path = write(tmp_path / "a.parquet", {"x": [1, 0]})
    decoded = read(path, label=Column("x", torch.int8, values="label"), feature=Column("x"))
    assert decoded["label"].dtype == torch.int8
    assert torch.equal(decoded["label"].float(), decoded["feature"])


def test_names_with_dots_are_not_paths(tmp_path):
    struct = pa.array([{"b": 1, "list": [9]}, {"b": 2, "list": [9]}])
    path = write(tmp_path / "p.parquet", {"a": struct, "a.b": [10, 20], "a.b.c": [5, 6], "a.list": [[7], [8]]})
    decoded = read(path, x=Column("a.b", torch.int64), y=Column("a.list", torch.int64, 1))
    assert decoded["x"].tolist() == [10, 20]
    assert decoded["y"].tolist() == [[7], [8]]


def test_nested_field_is_not_a_column(tmp_path):
    path = write(tmp_path / "p.parquet", {"a": pa.array([{"b": 1}])})
    assert opening_error(path, Column("a.b")) == f"{path}: no column 'a.b', or more than one; columns found: a"


def test_one_value_of_a_vector_as_a_plain_column(tmp_path):
    write(tmp_path / "a.parquet", {"x": VECTORS})
    both = read(tmp_path, whole=Column("x", width=3), one=Column("x", width=3, position=1))
    assert both["whole"].tolist() == VECTORS
    assert both["one"].tolist() == [2.0, 5.0, 8.0, 11.0]
    assert both["one"].dtype == torch.float32
    label = Column("x", torch.float64, width=3, position=0, values="label")
    assert error_of(tmp_path, label).endswith(
        "row group 0, row 1 (both counted from 0): column 'x', position 0: found 4.0, but a label must be 0 or 1"
    )


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.bfloat16, torch.bool])
def test_narrower_dtype_in_batches(tmp_path, dtype):
    write(tmp_path / "a.parquet", {"x": VECTORS, "n": [0, 1, 2, 255]})
    both = read(tmp_path, x=Column("x", width=3, keep=2, narrow=dtype), n=Column("n", torch.int64, narrow=dtype))
    assert both["x"].dtype == both["n"].dtype == dtype
    assert torch.equal(both["x"], torch.tensor(VECTORS)[:, :2].to(dtype))
    assert torch.equal(both["n"], torch.tensor([0, 1, 2, 255]).to(dtype))


@pytest.mark.parametrize("keep", [2, np.array([0, 1])])
def test_kept_values_must_fit_the_narrower_dtype(tmp_path, keep):
    write(tmp_path / "a.parquet", {"x": [[1.0, 2.0, 3.5], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0], [10.0, 300.0, 12.0]]})
    assert error_of(tmp_path, Column("x", width=3, keep=keep, narrow=torch.uint8)).endswith(
        "row group 1, row 1 (both counted from 0): column 'x': found 300.0, but uint8 holds whole numbers from 0 to 255"
    )


# Errors in values, which are raised with their location when a row group is decoded.


def write_with_bad_row(folder: Path, good: Any, bad: Any, kind: pa.DataType) -> Path:
    """Write two files of four row groups of three rows.

    The bad value is in the last row of the third row group of the second file.
    """
    write(folder / "a.parquet", {"x": pa.array([good] * 12, kind)}, 3)
    return write(folder / "b.parquet", {"x": pa.array([good] * 8 + [bad] + [good] * 3, kind)}, 3)


NULL_IN_LIST = "found null in a list, but every value is required"
F32, LABEL = pa.float32(), "but a label must be 0 or 1"
WEIGHT, PROBABILITY = (
    "but a weight must be at least 0 and finite in float32",
    "but a probability must be between 0 and 1",
)


@pytest.mark.parametrize(
    ("column", "kind", "good", "bad", "problem"),
    [
        (Column("x"), F32, 1.0, None, "found null, but every row needs a value"),
        (Column("x", width=2), pa.list_(F32), [1, 2], None, "found null, but every row needs a value"),
        (Column("x", width=2), pa.list_(F32, 2), [1, 2], None, "found null, but every row needs a value"),
        (Column("x", width=2), pa.list_(F32), [1, 2], [1, None], NULL_IN_LIST),
        (Column("x", width=2), pa.list_(F32, 2), [1, 2], [None, 2], NULL_IN_LIST),
        (Column("x", width=2), pa.list_(F32), [1, 2], [1], "found a list of 1 values, expected 2"),
        (Column("x", width=2), pa.large_list(F32), [1, 2], [1, 2, 3], "found a list of 3 values, expected 2"),
        (Column("x", width=2), pa.list_(F32), [1, 2], [], "found a list of 0 values, expected 2"),
        (Column("x", torch.int8, values="label"), pa.int64(), 1, 2, f"found 2, {LABEL}"),
        (Column("x", torch.int8, values="label"), pa.int64(), 1, 256, f"found 256, {LABEL}"),
        (Column("x", torch.int8, values="label"), pa.int8(), 0, -1, f"found -1, {LABEL}"),
        (Column("x", values="label"), pa.float64(), 0, float("nan"), f"found nan, {LABEL}"),
        (Column("x", values="weight"), pa.float64(), 0, -0.5, f"found -0.5, {WEIGHT}"),
        (Column("x", values="weight"), pa.float64(), 3, float("nan"), f"found nan, {WEIGHT}"),
        (Column("x", values="weight"), F32, 3, float("inf"), f"found inf, {WEIGHT}"),
        (Column("x", values="weight"), pa.float64(), 3, 1e300, f"found 1e+300, {WEIGHT}"),
        (Column("x", values="weight"), pa.int16(), 3, -2, f"found -2, {WEIGHT}"),
        (Column("x", values="probability"), F32, 1, 1.5, f"found 1.5, {PROBABILITY}"),
        (Column("x", values="probability"), F32, 0, -0.5, f"found -0.5, {PROBABILITY}"),
        (Column("x", values="probability"), F32, 0, float("nan"), f"found nan, {PROBABILITY}"),
        (Column("x", width=2, values="probability"), pa.list_(F32), [0, 1], [0, 2], f"found 2.0, {PROBABILITY}"),
        (
            Column("x", torch.int64, 2),
            pa.list_(pa.uint64()),
            [1, 2],
            [1, 2**63],
            f"found {2**63}, but values must be between {-(2**63)} and {2**63 - 1}",
        ),
    ],
)
def test_error_names_file_row_group_row_and_column(tmp_path, column, kind, good, bad, problem):
    path = write_with_bad_row(tmp_path, good, bad, kind)
    message = f"{path}: row group 2, row 2 (both counted from 0): column 'x': {problem}"
    assert error_of(tmp_path, column).startswith(message)


def test_first_bad_row_is_reported(tmp_path):
    path = write(tmp_path / "a.parquet", {"x": [0, 1, 5, 7]}, 4)
    assert "row group 0, row 2 (both counted from 0): column 'x': found 5" in error_of(
        path, Column("x", torch.int8, values="label")
    )


def test_error_of_a_check_names_its_location(tmp_path):
    def check(stored: RowGroup) -> BadValue | None:
        (rows,) = np.nonzero(stored["low"] > stored["high"])
        return BadValue("low", int(rows[0]), f"found {stored['low'][rows[0]]}") if len(rows) else None

    path = write(tmp_path / "a.parquet", {"from": [1, 2, 3, 9], "to": [1, 3, 4, 5]})
    columns: dict[Hashable, Column] = {"low": Column("from", torch.int64), "high": Column("to", torch.int64)}
    # Rows are counted within the row group, whatever range is read: the bad one is the second.
    table = ParquetTable(matching_files(str(path)), columns, check=check, rows=lambda num_rows: range(1, num_rows))
    assert table.decode(0)["low"].tolist() == [2]
    with pytest.raises(DataError) as caught:
        table.decode(1)
    assert str(caught.value) == f"{path}: row group 1, row 1 (both counted from 0): column 'from': found 9"


def test_only_the_decoded_row_group_is_checked(tmp_path):
    write_with_bad_row(tmp_path, 1, 2, pa.int8())
    table = ParquetTable(matching_files(str(tmp_path)), {"x": Column("x", torch.int8, values="label")})
    assert [len(table.decode(group)["x"]) for group in (0, 1, 2, 3, 4, 5, 7)] == [3] * 7


# Files that change after they were opened.


def test_corrupt_pages(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"x": np.arange(20_000.0)}), path, compression="zstd", use_dictionary=False)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[100:middle] = bytes(middle - 100)
    path.write_bytes(content)
    table = ParquetTable(matching_files(str(path)), {"x": Column("x")})
    with pytest.raises(DataError) as caught:
        table.decode(0)
    assert str(caught.value).startswith(f"{path}: row group 0: cannot read this row group: ")


@pytest.mark.parametrize("change", ["deleted", "emptied", "fewer row groups", "more rows", "column gone", "same size"])
def test_file_that_changed_after_it_was_opened(tmp_path, change):
    path = write(tmp_path / "a.parquet", {"x": [1, 2, 3]})
    table = ParquetTable(matching_files(str(path)), {"x": Column("x")})
    match change:
        case "deleted":
            path.unlink()
        case "emptied":
            path.write_bytes(b"")
        case "fewer row groups":
            write(path, {"x": [1]})
        case "more rows":
            write(path, {"x": [1, 2, 3, 4]})
        case "column gone":
            write(path, {"y": [1, 2, 3]})
        case "same size":
            other = write(tmp_path / "other", {"x": [3, 2, 1]})
            assert other.stat().st_size == path.stat().st_size
            other.replace(path)
    with pytest.raises(DataError) as caught:
        table.decode(1)
    problem = "cannot read this row group: " if change == "deleted" else "the file has changed since it was opened"
    assert str(caught.value).startswith(f"{path}: row group 1: {problem}")
