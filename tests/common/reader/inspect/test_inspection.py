from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.reader import vectors
from common.reader.files import matching_files
from common.reader.inspect import inspection
from common.reader.inspect.inspection import Inspection, inspect
from tests.support.damage import overwrite_page

RNG = np.random.default_rng(0)

AS_FLOATS = "a run can read both as floats, but not as ids or labels"


def write(path: Path, columns: dict[str, Any], row_group_size: int = 4) -> Path:
    pq.write_table(pa.table(columns), path, row_group_size=row_group_size)
    return path


def inspected(path: Path) -> Inspection:
    return inspect(matching_files(str(path)))


def errors_of(path: Path) -> list[str]:
    """Return the errors without the path of the file."""
    found = inspected(path).errors
    assert found.count == len(found.kept)
    return [message.removeprefix(f"{path}: ") for message in found.kept]


def lists(values: np.ndarray[Any, Any]) -> pa.Array:
    return pa.array(values.tolist(), pa.list_(pa.from_numpy_dtype(values.dtype)))


def fixed(values: np.ndarray[Any, Any]) -> pa.Array:
    flat = pa.array(values.reshape(-1), pa.from_numpy_dtype(values.dtype))
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


# --- Sizes and statistics ---


@pytest.mark.parametrize("row_group_size", [1, 4, 100])
def test_statistics_do_not_depend_on_how_numbers_are_stored(tmp_path, row_group_size):
    values = RNG.normal(size=(23, 3)).astype(np.float32)
    values[5, 1], values[7, 2], values[3] = np.nan, np.inf, 0
    field = vectors.vector_field("binary", "float32", 3, "binary")
    columns = {
        "lists": lists(values),
        "large": lists(values).cast(pa.large_list(pa.float32())),
        "fixed": fixed(values),
        "binary": vectors.vector_array(values, field),
    }
    schema = pa.schema([field if name == "binary" else pa.field(name, array.type) for name, array in columns.items()])
    for index, part in enumerate((slice(0, 10), slice(10, 23))):
        arrays = [column.take(pa.array(np.arange(23)[part])) for column in columns.values()]
        pq.write_table(pa.Table.from_arrays(arrays, schema=schema), tmp_path / f"{index}.parquet", row_group_size)
    found = inspected(tmp_path)
    assert found.errors.kept == found.warnings.kept == []
    finite = values[np.isfinite(values)].astype(np.float64)
    for name in columns:
        column = found.columns[name]
        statistics = column.statistics
        assert (statistics.count, statistics.not_finite, statistics.zeros) == (69, 2, 3), name
        assert (statistics.minimum, statistics.maximum) == (finite.min(), finite.max())
        assert statistics.mean == pytest.approx(finite.mean())
        assert statistics.standard_deviation == pytest.approx(finite.std())
        assert column.width == 3
        assert not column.is_flag


@pytest.mark.parametrize("dtype", ["float16", "float64", "int64", "uint8", "bool"])
def test_binary_vectors_of_each_dtype(tmp_path, dtype):
    values = RNG.integers(0, 2, (9, 4)).astype(dtype)
    field = vectors.vector_field("x", dtype, 4, "binary")
    table = pa.Table.from_arrays([vectors.vector_array(values, field)], schema=pa.schema([field]))
    pq.write_table(table, tmp_path / "a.parquet", 4)
    found = inspected(tmp_path)
    statistics = found.columns["x"].statistics
    assert (statistics.count, statistics.zeros) == (36, (values == 0).sum())
    assert (statistics.minimum, statistics.maximum) == (0, 1)
    assert found.errors.kept == []


def test_row_group_sizes(tmp_path):
    table = pa.table({"x": fixed(RNG.normal(size=(10, 5)).astype(np.float32)), "y": list(range(10))})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=4, compression="zstd")
    pq.write_table(table.slice(0, 3), tmp_path / "b.parquet", compression="snappy")
    found = inspected(tmp_path)
    assert [group.rows for group in found.row_groups] == [4, 4, 2, 3]
    assert [group.decoded for group in found.row_groups] == [rows * (5 * 4 + 8) for rows in (4, 4, 2, 3)]
    assert found.num_rows == 13
    assert found.compressions == {"ZSTD", "SNAPPY"}
    nested = {"s": [{"a": "x", "b": 1.5}], "m": pa.array([[("k", "v")]], pa.map_(pa.string(), pa.string())), "y": [1]}
    codecs = {"s.a": "zstd", "s.b": "zstd", "m.key_value.key": "gzip", "m.key_value.value": "gzip", "y": "brotli"}
    pq.write_table(pa.table(nested), tmp_path / "nested", compression=codecs)
    assert inspected(tmp_path / "nested").compressions == {"BROTLI"}
    stored = sum(group.stored for group in found.row_groups)
    assert 13 * 20 < stored < sum(path.stat().st_size for path in tmp_path.glob("*.parquet"))


def test_columns_that_can_be_labels(tmp_path):
    columns = {
        "label": pa.array([0, 1, 1, 0, 1], pa.int8()),
        "boolean": [True, False, False, False, False],
        "never": [0] * 5,
        "count": [0, 3, 4, 5, 1],
        "probability": [0.0, 1.0, 1.0, 0.0, 1.0],
        "vector": fixed(np.ones((5, 2), np.int64)),
        "text": list("01101"),
    }
    found = inspected(write(tmp_path / "a.parquet", columns))
    assert {name: column.ones for name, column in found.columns.items() if column.is_flag} == {
        "label": 3,
        "boolean": 1,
        "never": 0,
    }
    assert found.columns["text"].statistics.count == 0
    assert found.errors.kept == []


def test_name_with_dots_that_starts_with_another_name(tmp_path):
    found = inspected(write(tmp_path / "a.parquet", {"a": [1, 2, 3], "a.b": [4, 5, 6], "a.b.c": ["x", "y", "z"]}))
    assert [found.columns[name].statistics.mean for name in ("a", "a.b")] == [2, 5]


def test_progress_counts_rows(tmp_path):
    rows: list[int] = []
    inspect(matching_files(str(write(tmp_path / "a.parquet", {"x": list(range(9))}))), rows.append)
    assert rows == [4, 4, 1]


# --- Errors and warnings ---


def test_truncated_empty_and_text_files_are_unreadable(tmp_path):
    good = write(tmp_path / "a.parquet", {"x": [1, 2, 3]})
    (tmp_path / "b.parquet").write_bytes(good.read_bytes()[:-20])
    (tmp_path / "c.parquet").write_bytes(b"")
    (tmp_path / "d.parquet").write_text("not Parquet by its content")
    write(tmp_path / "e.parquet", {"x": [4]})
    found = inspected(tmp_path)
    starts = [message.split(": ")[:2] for message in found.errors.kept]
    assert starts == [[str(tmp_path / f"{name}.parquet"), "cannot read this file as Parquet"] for name in "bcd"]
    assert (found.unreadable, found.num_rows, found.columns["x"].statistics.maximum) == (3, 4, 4)


def test_row_group_that_cannot_be_decoded(tmp_path):
    values = RNG.normal(size=(12, 50)).astype(np.float32)
    path = tmp_path / "a.parquet"
    pq.write_table(
        pa.table({"x": fixed(values), "y": list(range(12))}), path, 4, compression="zstd", use_dictionary=False
    )
    chunk = pq.ParquetFile(path).metadata.row_group(1).column(0)
    content = bytearray(path.read_bytes())
    middle = chunk.data_page_offset + chunk.total_compressed_size // 2
    content[chunk.data_page_offset : middle] = bytes(middle - chunk.data_page_offset)
    path.write_bytes(content)
    [message] = errors_of(path)
    assert message.startswith("row group 1: cannot decode column 'x': ")
    found = inspected(path)
    assert found.columns["x"].statistics.count == 8 * 50
    assert found.columns["y"].statistics.count == 12


def test_column_name_that_is_not_utf_8(tmp_path):
    path = write(tmp_path / "a.parquet", {"a_name": [1, 2]})
    path.write_bytes(path.read_bytes().replace(b"a_name", b"a_\xffame"))
    write(tmp_path / "b.parquet", {"x": [4]})
    found = inspected(tmp_path)
    [message] = found.errors.kept
    assert message.startswith(f"{path}: cannot read this file as Parquet: ")
    assert (found.unreadable, found.columns["x"].statistics.count) == (1, 1)


def test_column_with_fewer_values_than_rows(tmp_path):
    path = write(tmp_path / "a.parquet", {"x": [1.0, 2.0, 3.0, 4.0], "y": [1, 2, 3, 4]})
    content = path.read_bytes()
    # The column's metadata in Thrift's compact encoding: its path, then field 4 (codec) and field 5 (number of values).
    before = b"\x18\x01x\x15\x02\x16"
    assert content.count(before + b"\x08") == 1
    path.write_bytes(content.replace(before + b"\x08", before + b"\x00"))
    assert errors_of(path) == ["row group 0: column 'x' has 0 of the 4 rows"]
    assert inspected(path).columns["y"].statistics.count == 4


@pytest.mark.parametrize("storage", ["plain", "list", "fixed", "binary"])
def test_nulls_are_counted_and_the_first_row_is_reported(tmp_path, storage):
    rows: list[Any] = [[float(row), 1.0] for row in range(10)]
    schema = {
        "plain": pa.field("x", pa.float32()),
        "list": pa.field("x", pa.list_(pa.float32())),
        "fixed": pa.field("x", pa.list_(pa.float32(), 2)),
        "binary": vectors.vector_field("x", "float32", 2, "binary").with_nullable(True),
    }[storage]
    packed = [np.array(row, np.float32).tobytes() if storage == "binary" else row for row in rows]
    values: list[Any] = list(range(10)) if storage == "plain" else packed
    values[5] = values[6] = values[9] = None
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"x": pa.array(values, schema.type)}, pa.schema([schema])), path, 4)
    assert errors_of(path) == [
        "column 'x': found null in 3 rows, first at row group 1, row 1 (counted from 0)",
    ]
    statistics = inspected(path).columns["x"].statistics
    kept = [row for row in range(10) if row not in (5, 6, 9)]
    assert statistics.count == 7 * (1 if storage == "plain" else 2)
    assert statistics.maximum == max(kept)


@pytest.mark.parametrize("kind", [pa.list_(pa.int64()), pa.list_(pa.int64(), 2), pa.large_list(pa.int64())])
def test_null_in_a_list(tmp_path, kind):
    rows = [[0, 1], [2, 3], [4, 5], [6, 7], None, [8, None], [None, None], [9, 9]]
    path = write(tmp_path / "a.parquet", {"x": pa.array(rows, kind)})
    assert errors_of(path) == [
        "column 'x': found null in 1 row, at row group 1, row 0 (counted from 0)",
        "column 'x': found null in a list in 2 rows, first at row group 1, row 1 (counted from 0)",
    ]
    assert inspected(path).columns["x"].statistics.count == 11


def test_lists_of_different_lengths(tmp_path):
    rows = [[1, 2], [3, 4], [5], [6, 7], [], [8], [9, 9, 9], [1, 1]]
    path = write(tmp_path / "a.parquet", {"x": rows})
    assert errors_of(path) == [
        f"column 'x': found a list of {length} values instead of 2, the width of the first row, in {where} "
        "(counted from 0)"
        for length, where in [
            (1, "2 rows, first at row group 0, row 2"),
            (0, "1 row, at row group 1, row 0"),
            (3, "1 row, at row group 1, row 2"),
        ]
    ]
    write(tmp_path / "b.parquet", {"x": [[1, 2, 3]]})
    last = inspected(tmp_path).errors.kept[-1]
    assert last.startswith(f"{tmp_path / 'b.parquet'}: column 'x': found a list of 3 values instead of 2")


@pytest.mark.parametrize(
    "metadata", [{"dtype": "float32"}, {"width": "2"}, {"dtype": "float32", "width": "3"}, {"dtype": "f", "width": "2"}]
)
def test_fixed_size_binary_with_incomplete_or_contradictory_metadata(tmp_path, metadata):
    field = pa.field("x", pa.binary(8), metadata=metadata)
    table = pa.table({"x": pa.array([b"12345678"], pa.binary(8))}, schema=pa.schema([field]))
    for name in "ab":
        pq.write_table(table, tmp_path / f"{name}.parquet")
    found = inspected(tmp_path)
    assert [message.split(": ")[1] for message in found.errors.kept] == ["column 'x'"] * 2
    assert all("metadata" in message for message in found.errors.kept)


def test_fixed_size_binary_without_metadata_is_a_warning(tmp_path):
    for name in "ab":
        write(tmp_path / f"{name}.parquet", {"uuid": pa.array([b"12345678"], pa.binary(8))})
    found = inspected(tmp_path)
    assert found.errors.kept == []
    assert found.warnings.kept == [
        f"{tmp_path / 'a.parquet'}: column 'uuid': fixed-size binary without dtype and width in the field's metadata; "
        "a run cannot read it as a vector"
    ]
    assert found.columns["uuid"].shape is None


def test_column_of_empty_lists_is_a_warning(tmp_path):
    empty = pa.array([[]] * 3, pa.list_(pa.float32()))
    for name in "ab":
        write(tmp_path / f"{name}.parquet", {"x": empty, "y": [[1], [2], [3]]})
    found = inspected(tmp_path)
    assert found.errors.kept == []
    assert found.warnings.kept == ["column 'x': all lists are empty; a run cannot read it as a vector"]


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ([1], ["a"], "column 'x': found string, but int64 in the first file"),
        ([1], [[1]], "column 'x': found list of int64, but int64 in the first file"),
        (
            fixed(np.ones((1, 3))),
            fixed(np.ones((1, 2))),
            "column 'x': found fixed_size_list of double[2], but fixed_size_list of double[3] in the first file",
        ),
        (["a"], [[1]], "column 'x': found list of int64, but string in the first file"),
    ],
)
def test_columns_that_differ_from_the_first_file(tmp_path, first, second, message):
    write(tmp_path / "a.parquet", {"x": first, "y": [1]})
    path = write(tmp_path / "b.parquet", {"x": second, "y": [2]})
    write(tmp_path / "c.parquet", {"x": first, "y": [3]})
    found = inspected(tmp_path)
    assert found.errors.kept == [f"{path}: {message}"]
    assert found.columns["y"].statistics.count == 3


def test_columns_missing_from_one_file(tmp_path):
    write(tmp_path / "a.parquet", {"x": [1], "y": [1]})
    path = write(tmp_path / "b.parquet", {"z": [1], "y": [2]})
    assert inspected(tmp_path).errors.kept == [
        f"{path}: column 'z' is not in the first file",
        f"{path}: no column 'x', but the first file has one",
    ]


def test_duplicate_column_name(tmp_path):
    table = pa.Table.from_arrays([pa.array([1]), pa.array([2]), pa.array([3])], names=["x", "x", "y"])
    pq.write_table(table, tmp_path / "a.parquet")
    assert errors_of(tmp_path / "a.parquet") == ["more than one column 'x'"]
    assert inspected(tmp_path).columns["y"].statistics.mean == 3


def test_files_without_rows(tmp_path):
    for name in "ab":
        write(tmp_path / f"{name}.parquet", {"x": pa.array([], pa.list_(pa.float32()))})
    assert inspected(tmp_path).errors.kept == [f"{tmp_path}: 2 file(s) with no rows"]
    write(tmp_path / "c.parquet", {"x": pa.array([[1.0]], pa.list_(pa.float32()))})
    assert inspected(tmp_path).errors.kept == []


def test_label_that_is_neither_0_nor_1(tmp_path):
    write(tmp_path / "a.parquet", {"x": [0, 1] * 10})
    path = write(tmp_path / "b.parquet", {"x": [1, 0, 0, 0, 1, 0, 2, -1, 1]})
    found = inspected(tmp_path)
    assert found.errors.kept == [
        "column 'x': looks like a label, but 2 of 29 values are neither 0 nor 1; the first is 2 at "
        f"{path}: row group 1, row 2"
    ]
    assert not found.columns["x"].is_flag


@pytest.mark.parametrize("values", [[0] * 9 + [7], [1] * 9 + [7], [0, 1, 2, 3, 4] * 4])
def test_other_integers_are_not_assumed_to_be_labels(tmp_path, values):
    assert errors_of(write(tmp_path / "a.parquet", {"x": values})) == []


def test_compatible_types_are_a_warning(tmp_path):
    floats, integers = fixed(np.ones((2, 3), np.float32)), lists(np.ones((2, 3), np.int64))
    write(tmp_path / "a.parquet", {"x": pa.array([1, 0], pa.int8()), "y": [0.5, 1.0], "v": floats})
    path = write(tmp_path / "b.parquet", {"x": pa.array([1, 1], pa.int64()), "y": [1, 2], "v": integers})
    found = inspected(tmp_path)
    assert found.errors.kept == []
    assert found.warnings.kept == [
        f"{path}: column 'x': found int64, but int8 in the first file; a run can read both",
        f"{path}: column 'y': found int64, but double in the first file; {AS_FLOATS}",
        f"{path}: column 'v': found list of int64, but fixed_size_list of float in the first file; {AS_FLOATS}",
    ]
    assert found.columns["x"].ones == 3


@pytest.mark.parametrize("first", ["integers", "floats"])
def test_column_of_integers_and_floats_is_not_a_label(tmp_path, first):
    integers = {"x": [0, 1] * 10, "v": lists(np.ones((20, 2), np.int64))}
    floats = {"x": [0.0, 0.5], "v": lists(np.ones((2, 2), np.float32))}
    parts = [integers, floats, integers] if first == "integers" else [floats, integers, floats]
    for name, columns in zip("abc", parts, strict=True):
        write(tmp_path / f"{name}.parquet", columns)
    found = inspected(tmp_path)
    assert found.errors.kept == []
    x, v = ("int64", "list of int64"), ("double", "list of float")
    second_file, first_file = (v, x) if first == "integers" else (x, v)
    assert found.warnings.kept[:2] == [
        f"{tmp_path / 'b.parquet'}: column '{name}': found {second_file[index]}, but {first_file[index]} in the first "
        f"file; {AS_FLOATS}"
        for index, name in enumerate("xv")
    ]
    assert found.columns["x"].statistics.count == sum(len(columns["x"]) for columns in parts)
    assert not found.columns["x"].is_flag


def test_large_row_group_is_a_warning_with_its_size(tmp_path, monkeypatch):
    monkeypatch.setattr(inspection, "LARGE_ROW_GROUP", 2 * 2**20)
    columns = {"x": fixed(np.zeros((6, 2**17)))}
    path = write(tmp_path / "a.parquet", columns, row_group_size=4)
    [warning] = inspected(path).warnings.kept
    assert warning.startswith(f"{path}: row group 0 has 4 rows and takes 4 MiB when decoded.")
    assert "2 row group(s) take at least 2 MiB" in warning


def test_all_findings_are_counted_and_the_first_are_kept(tmp_path):
    for index in range(inspection.MOST_FINDINGS + 7):
        (tmp_path / f"{index:03}.parquet").touch()
    found = inspected(tmp_path).errors
    assert found.count == inspection.MOST_FINDINGS + 8, "one per file, and one for no rows"
    assert len(found.kept) == inspection.MOST_FINDINGS


@pytest.mark.parametrize("column", ["x", "v"])
def test_an_overwritten_page_is_an_error(tmp_path, column):
    path = tmp_path / "a.parquet"
    columns = pa.table({"x": np.arange(40), "v": lists(RNG.normal(size=(40, 3)))})
    pq.write_table(columns, path, row_group_size=20, write_page_checksum=True)
    assert errors_of(path) == []
    overwrite_page(path, column, group=1)
    [error] = errors_of(path)
    assert error.startswith(f"row group 1: cannot decode column '{column}': ")
    assert inspected(path).unprotected == 0


def test_files_without_checksums_of_pages_are_counted(tmp_path):
    write(tmp_path / "a.parquet", {"text": ["a"], "x": [1]})
    write(tmp_path / "b.parquet", {"text": ["a"], "x": [1]})
    pq.write_table(pa.table({"text": ["a"], "x": [1]}), tmp_path / "c.parquet", write_page_checksum=True)
    assert inspected(tmp_path).unprotected == 2
