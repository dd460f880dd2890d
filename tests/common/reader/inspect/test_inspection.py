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

RNG = np.random.default_rng(0)


AS_FLOATS = "a run reads both as floats, but not as ids or labels"


def write(path: Path, columns: dict[str, Any], row_group_size: int = 4) -> Path:
    pq.write_table(pa.table(columns), path, row_group_size=row_group_size)
    return path


def inspected(path: Path) -> Inspection:
    return inspect(matching_files(str(path)))


def refused(path: Path) -> list[str]:
    """The findings, less the file's path."""
    found = inspected(path).refused
    assert found.count == len(found.kept)
    return [message.removeprefix(f"{path}: ") for message in found.kept]


def lists(values: np.ndarray[Any, Any]) -> pa.Array:
    return pa.array(values.tolist(), pa.list_(pa.from_numpy_dtype(values.dtype)))


def fixed(values: np.ndarray[Any, Any]) -> pa.Array:
    flat = pa.array(values.reshape(-1), pa.from_numpy_dtype(values.dtype))
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


# --- What is there ---


@pytest.mark.parametrize("row_group_size", [1, 4, 100])
def test_each_way_to_store_numbers_has_the_same_statistics(tmp_path, row_group_size):
    values = RNG.normal(size=(23, 3)).astype(np.float32)
    values[5, 1], values[7, 2], values[3] = np.nan, np.inf, 0
    field = vectors.vector_field("binary", "float32", 3, "binary")
    columns = {
        "lists": lists(values),
        "large": lists(values).cast(pa.large_list(pa.float32())),
        "fixed": fixed(values),
        "binary": vectors.vector_array(values, field),
    }
    schema = pa.schema([field if name == "binary" else pa.field(name, of.type) for name, of in columns.items()])
    for index, part in enumerate((slice(0, 10), slice(10, 23))):
        arrays = [column.take(pa.array(np.arange(23)[part])) for column in columns.values()]
        pq.write_table(pa.Table.from_arrays(arrays, schema=schema), tmp_path / f"{index}.parquet", row_group_size)
    found = inspected(tmp_path)
    assert found.refused.kept == found.remarks.kept == []
    finite = values[np.isfinite(values)].astype(np.float64)
    for name in columns:
        column = found.columns[name]
        of = column.statistics
        assert (of.count, of.not_finite, of.zeros) == (69, 2, 3), name
        assert (of.minimum, of.maximum) == (finite.min(), finite.max())
        assert of.mean == pytest.approx(finite.mean())
        assert of.standard_deviation == pytest.approx(finite.std())
        assert column.width == 3
        assert not column.is_flag


@pytest.mark.parametrize("dtype", ["float16", "float64", "int64", "uint8", "bool"])
def test_binary_vectors_of_a_dtype(tmp_path, dtype):
    values = RNG.integers(0, 2, (9, 4)).astype(dtype)
    field = vectors.vector_field("x", dtype, 4, "binary")
    table = pa.Table.from_arrays([vectors.vector_array(values, field)], schema=pa.schema([field]))
    pq.write_table(table, tmp_path / "a.parquet", 4)
    found = inspected(tmp_path)
    of = found.columns["x"].statistics
    assert (of.count, of.zeros, of.minimum, of.maximum) == (36, (values == 0).sum(), 0, 1)
    assert found.refused.kept == []


def test_sizes_of_row_groups(tmp_path):
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


def test_what_can_be_a_label(tmp_path):
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
    assert found.refused.kept == []


def test_a_name_with_dots_that_another_begins_with(tmp_path):
    found = inspected(write(tmp_path / "a.parquet", {"a": [1, 2, 3], "a.b": [4, 5, 6], "a.b.c": ["x", "y", "z"]}))
    assert [found.columns[name].statistics.mean for name in ("a", "a.b")] == [2, 5]


def test_progress_counts_rows(tmp_path):
    told: list[int] = []
    inspect(matching_files(str(write(tmp_path / "a.parquet", {"x": list(range(9))}))), told.append)
    assert told == [4, 4, 1]


# --- What a run would refuse ---


def test_files_that_are_no_parquet_and_a_truncated_one(tmp_path):
    good = write(tmp_path / "a.parquet", {"x": [1, 2, 3]})
    (tmp_path / "b.parquet").write_bytes(good.read_bytes()[:-20])
    (tmp_path / "c.parquet").write_bytes(b"")
    (tmp_path / "d.parquet").write_text("not Parquet by its content")
    write(tmp_path / "e.parquet", {"x": [4]})
    found = inspected(tmp_path)
    places = [message.split(": ")[:2] for message in found.refused.kept]
    assert places == [[str(tmp_path / f"{name}.parquet"), "can't be read as Parquet"] for name in "bcd"]
    assert (found.unreadable, found.num_rows, found.columns["x"].statistics.maximum) == (3, 4, 4)


def test_a_row_group_that_cannot_be_decoded(tmp_path):
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
    [message] = refused(path)
    assert message.startswith("row group 1: column 'x' can't be decoded: ")
    found = inspected(path)
    assert found.columns["x"].statistics.count == 8 * 50
    assert found.columns["y"].statistics.count == 12


def test_a_column_whose_name_is_not_utf_8(tmp_path):
    path = write(tmp_path / "a.parquet", {"a_name": [1, 2]})
    path.write_bytes(path.read_bytes().replace(b"a_name", b"a_\xffame"))
    write(tmp_path / "b.parquet", {"x": [4]})
    found = inspected(tmp_path)
    [message] = found.refused.kept
    assert message.startswith(f"{path}: can't be read as Parquet: ")
    assert (found.unreadable, found.columns["x"].statistics.count) == (1, 1)


def test_a_column_with_fewer_values_than_the_row_group_has_rows(tmp_path):
    path = write(tmp_path / "a.parquet", {"x": [1.0, 2.0, 3.0, 4.0], "y": [1, 2, 3, 4]})
    content = path.read_bytes()
    # Of the column's metadata in Thrift's compact encoding: its path, then fields 4, the codec, and 5, the values.
    before = b"\x18\x01x\x15\x02\x16"
    assert content.count(before + b"\x08") == 1
    path.write_bytes(content.replace(before + b"\x08", before + b"\x00"))
    assert refused(path) == ["row group 0: column 'x' has 0 of the 4 rows"]
    assert inspected(path).columns["y"].statistics.count == 4


@pytest.mark.parametrize("layout", ["one", "list", "fixed", "binary"])
def test_nulls_are_told_with_the_first_row_of_each_file(tmp_path, layout):
    rows: list[Any] = [[float(row), 1.0] for row in range(10)]
    schema = {
        "one": pa.field("x", pa.float32()),
        "list": pa.field("x", pa.list_(pa.float32())),
        "fixed": pa.field("x", pa.list_(pa.float32(), 2)),
        "binary": vectors.vector_field("x", "float32", 2, "binary").with_nullable(True),
    }[layout]
    packed = [np.array(row, np.float32).tobytes() if layout == "binary" else row for row in rows]
    values: list[Any] = list(range(10)) if layout == "one" else packed
    values[5] = values[6] = values[9] = None
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"x": pa.array(values, schema.type)}, pa.schema([schema])), path, 4)
    assert refused(path) == [
        "column 'x': null found in 3 rows, the first: row group 1, row 1 (counted from 0)",
    ]
    of = inspected(path).columns["x"].statistics
    kept = [row for row in range(10) if row not in (5, 6, 9)]
    assert of.count == 7 * (1 if layout == "one" else 2)
    assert of.maximum == max(kept)


@pytest.mark.parametrize("kind", [pa.list_(pa.int64()), pa.list_(pa.int64(), 2), pa.large_list(pa.int64())])
def test_a_null_among_the_values(tmp_path, kind):
    rows = [[0, 1], [2, 3], [4, 5], [6, 7], None, [8, None], [None, None], [9, 9]]
    path = write(tmp_path / "a.parquet", {"x": pa.array(rows, kind)})
    assert refused(path) == [
        "column 'x': null found in 1 row: row group 1, row 0 (counted from 0)",
        "column 'x': a null among the values in 2 rows, the first: row group 1, row 1 (counted from 0)",
    ]
    assert inspected(path).columns["x"].statistics.count == 11


def test_lists_of_unequal_length(tmp_path):
    rows = [[1, 2], [3, 4], [5], [6, 7], [], [8], [9, 9, 9], [1, 1]]
    path = write(tmp_path / "a.parquet", {"x": rows})
    assert refused(path) == [
        f"column 'x': a list of {length} values, 2 in the first row of all, in {where} (counted from 0)"
        for length, where in [
            (1, "2 rows, the first: row group 0, row 2"),
            (0, "1 row: row group 1, row 0"),
            (3, "1 row: row group 1, row 2"),
        ]
    ]
    write(tmp_path / "b.parquet", {"x": [[1, 2, 3]]})
    assert f"{tmp_path / 'b.parquet'}: column 'x': a list of 3 values, 2 in" in inspected(tmp_path).refused.kept[-1]


@pytest.mark.parametrize(
    "metadata", [{"dtype": "float32"}, {"width": "2"}, {"dtype": "float32", "width": "3"}, {"dtype": "f", "width": "2"}]
)
def test_fixed_size_binary_whose_metadata_does_not_fit(tmp_path, metadata):
    field = pa.field("x", pa.binary(8), metadata=metadata)
    table = pa.table({"x": pa.array([b"12345678"], pa.binary(8))}, schema=pa.schema([field]))
    for name in "ab":
        pq.write_table(table, tmp_path / f"{name}.parquet")
    found = inspected(tmp_path)
    assert [message.split(": ")[1] for message in found.refused.kept] == ["column 'x'"] * 2
    assert all("metadata" in message for message in found.refused.kept)


def test_fixed_size_binary_that_says_nothing_holds_no_numbers(tmp_path):
    for name in "ab":
        write(tmp_path / f"{name}.parquet", {"uuid": pa.array([b"12345678"], pa.binary(8))})
    found = inspected(tmp_path)
    assert found.refused.kept == []
    assert found.remarks.kept == [
        f"{tmp_path / 'a.parquet'}: column 'uuid': fixed-size binary without dtype and width in the field's metadata: "
        "a run can't read it as a vector"
    ]
    assert found.columns["uuid"].layout is None


def test_lists_that_are_all_empty(tmp_path):
    empty = pa.array([[]] * 3, pa.list_(pa.float32()))
    for name in "ab":
        write(tmp_path / f"{name}.parquet", {"x": empty, "y": [[1], [2], [3]]})
    found = inspected(tmp_path)
    assert found.refused.kept == []
    assert found.remarks.kept == ["column 'x': all its lists are empty: a run can't read it as a vector"]


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ([1], ["a"], "column 'x': string, in the first file int64"),
        ([1], [[1]], "column 'x': list of int64, in the first file int64"),
        (
            fixed(np.ones((1, 3))),
            fixed(np.ones((1, 2))),
            "column 'x': fixed_size_list of double[2], in the first file fixed_size_list of double[3]",
        ),
        (["a"], [[1]], "column 'x': list of int64, in the first file string"),
    ],
)
def test_columns_that_differ_from_the_first_files(tmp_path, first, second, message):
    write(tmp_path / "a.parquet", {"x": first, "y": [1]})
    path = write(tmp_path / "b.parquet", {"x": second, "y": [2]})
    write(tmp_path / "c.parquet", {"x": first, "y": [3]})
    found = inspected(tmp_path)
    assert found.refused.kept == [f"{path}: {message}"]
    assert found.columns["y"].statistics.count == 3


def test_columns_that_one_file_lacks(tmp_path):
    write(tmp_path / "a.parquet", {"x": [1], "y": [1]})
    path = write(tmp_path / "b.parquet", {"z": [1], "y": [2]})
    assert inspected(tmp_path).refused.kept == [
        f"{path}: a column 'z', which the first file lacks",
        f"{path}: no column 'x', which the first file has",
    ]


def test_several_columns_of_a_name(tmp_path):
    table = pa.Table.from_arrays([pa.array([1]), pa.array([2]), pa.array([3])], names=["x", "x", "y"])
    pq.write_table(table, tmp_path / "a.parquet")
    assert refused(tmp_path / "a.parquet") == ["several columns 'x'"]
    assert inspected(tmp_path).columns["y"].statistics.mean == 3


def test_no_row_at_all(tmp_path):
    for name in "ab":
        write(tmp_path / f"{name}.parquet", {"x": pa.array([], pa.list_(pa.float32()))})
    assert inspected(tmp_path).refused.kept == [f"{tmp_path}: 2 file(s), but not one row"]
    write(tmp_path / "c.parquet", {"x": pa.array([[1.0]], pa.list_(pa.float32()))})
    assert inspected(tmp_path).refused.kept == []


def test_a_label_that_is_neither_0_nor_1(tmp_path):
    write(tmp_path / "a.parquet", {"x": [0, 1] * 10})
    path = write(tmp_path / "b.parquet", {"x": [1, 0, 0, 0, 1, 0, 2, -1, 1]})
    found = inspected(tmp_path)
    assert found.refused.kept == [
        f"column 'x': 2 of 29 values are neither 0 nor 1, as labels are; the first: {path}: row group 1, row 2: 2"
    ]
    assert not found.columns["x"].is_flag


@pytest.mark.parametrize("values", [[0] * 9 + [7], [1] * 9 + [7], [0, 1, 2, 3, 4] * 4])
def test_not_every_integer_is_a_label(tmp_path, values):
    assert refused(write(tmp_path / "a.parquet", {"x": values})) == []


def test_types_that_a_run_reads_alike_are_a_remark(tmp_path):
    floats, integers = fixed(np.ones((2, 3), np.float32)), lists(np.ones((2, 3), np.int64))
    write(tmp_path / "a.parquet", {"x": pa.array([1, 0], pa.int8()), "y": [0.5, 1.0], "v": floats})
    path = write(tmp_path / "b.parquet", {"x": pa.array([1, 1], pa.int64()), "y": [1, 2], "v": integers})
    found = inspected(tmp_path)
    assert found.refused.kept == []
    assert found.remarks.kept == [
        f"{path}: column 'x': int64, in the first file int8; a run reads both alike",
        f"{path}: column 'y': int64, in the first file double; {AS_FLOATS}",
        f"{path}: column 'v': list of int64, in the first file fixed_size_list of float; {AS_FLOATS}",
    ]
    assert found.columns["x"].ones == 3


@pytest.mark.parametrize("first", ["integers", "floats"])
def test_integers_in_some_files_and_floats_in_others_are_no_label(tmp_path, first):
    integers = {"x": [0, 1] * 10, "v": lists(np.ones((20, 2), np.int64))}
    floats = {"x": [0.0, 0.5], "v": lists(np.ones((2, 2), np.float32))}
    parts = [integers, floats, integers] if first == "integers" else [floats, integers, floats]
    for name, columns in zip("abc", parts, strict=True):
        write(tmp_path / f"{name}.parquet", columns)
    found = inspected(tmp_path)
    assert found.refused.kept == []
    x, v = ("int64", "list of int64"), ("double", "list of float")
    given, before = (v, x) if first == "integers" else (x, v)
    assert found.remarks.kept[:2] == [
        f"{tmp_path / 'b.parquet'}: column '{name}': {given[index]}, in the first file {before[index]}; {AS_FLOATS}"
        for index, name in enumerate("xv")
    ]
    assert found.columns["x"].statistics.count == sum(len(columns["x"]) for columns in parts)
    assert not found.columns["x"].is_flag


def test_a_large_row_group_is_a_remark_with_its_size(tmp_path, monkeypatch):
    monkeypatch.setattr(inspection, "LARGE_ROW_GROUP", 2 * 2**20)
    columns = {"x": fixed(np.zeros((6, 2**17)))}
    path = write(tmp_path / "a.parquet", columns, row_group_size=4)
    [remark] = inspected(path).remarks.kept
    assert remark.startswith(f"{path}: row group 0 has 4 rows, 4 MiB decoded, ")
    assert "2 have at least 2 MiB" in remark


def test_findings_are_counted_and_the_first_are_kept(tmp_path):
    for index in range(inspection.MOST_FINDINGS + 7):
        (tmp_path / f"{index:03}.parquet").touch()
    found = inspected(tmp_path).refused
    assert found.count == inspection.MOST_FINDINGS + 8, "and there is not one row"
    assert len(found.kept) == inspection.MOST_FINDINGS
