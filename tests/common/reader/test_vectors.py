import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from common.reader.column import Column
from common.reader.files import DataError, matching_files
from common.reader.parquet import ParquetTable
from common.reader.vectors import DTYPES, Storage, to_numpy, vector_array, vector_field, vector_format, with_lists
from tests.common.reader.test_parquet import read


def write(path: Path, values: np.ndarray, storage: Storage = "binary", **options: Any) -> Path:
    field = vector_field("x", values.dtype.name, values.shape[1], storage)
    table = pa.Table.from_arrays([vector_array(values, field)], schema=pa.schema([field]))
    pq.write_table(table, path, **options)
    return path


def random_values(dtype: str, rows: int = 7) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 2 if dtype == "bool" else 100, (rows, 3)).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_is_read_back(tmp_path, dtype):
    values = random_values(dtype)
    path = write(tmp_path / "a.parquet", values, row_group_size=4)
    stored = pq.read_table(path)
    assert with_lists(stored).column("x").to_pylist() == values.tolist()
    assert read(path, x=Column("x", width=3))["x"].tolist() == values.tolist()
    if values.dtype.kind != "f":
        assert read(path, x=Column("x", torch.int64, 3))["x"].tolist() == values.tolist()


def test_row_is_its_numbers_in_little_endian_order():
    field = vector_field("x", "float32", 2, "binary")
    array = vector_array(np.array([[1.5, -2.0], [0.0, 3.0]], np.float32), field)
    assert array.to_pylist() == [struct.pack("<2f", 1.5, -2.0), struct.pack("<2f", 0.0, 3.0)]
    assert field.metadata == {b"dtype": b"float32", b"width": b"2"}
    swapped = vector_array(np.array([[1.5, -2.0]], ">f4"), field)
    assert swapped.to_pylist() == [struct.pack("<2f", 1.5, -2.0)]


def test_to_numpy_does_not_copy():
    field = vector_field("x", "float32", 2, "binary")
    array = vector_array(np.ones((3, 2), np.float32), field)
    numbers = to_numpy(array.slice(1), vector_format(field))
    assert numbers.shape == (2, 2)
    assert numbers.ctypes.data == array.buffers()[1].address + 8


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("into", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_conversion_to_any_dtype_of_a_batch(tmp_path, dtype, into):
    values = random_values(dtype) / 4
    path = write(tmp_path / "a.parquet", values.astype(dtype))
    found = read(path, x=Column("x", into, 3))["x"]
    assert found.dtype == into
    assert found.tolist() == torch.from_numpy(values).to(into).tolist()


@pytest.mark.parametrize("storage", ["binary", "list"])
@pytest.mark.parametrize("keep", [2, np.array([2, 0]), np.array([1])], ids=str)
def test_keep_leading_values_or_values_at_positions(tmp_path, storage, keep):
    values = random_values("float32")
    path = write(tmp_path / "a.parquet", values, storage)
    column = Column("x", width=3, keep=keep)
    expected = values[:, :keep] if isinstance(keep, int) else values[:, keep]
    assert read(path, x=column)["x"].tolist() == expected.tolist()
    assert column.num_kept == expected.shape[1]


def test_files_may_store_a_column_with_different_dtypes(tmp_path):
    parts = [random_values(dtype) for dtype in ("float16", "float32", "uint8", "float64")]
    for index, values in enumerate(parts):
        write(tmp_path / f"{index}.parquet", values, "list" if index % 2 else "binary")
    expected = np.concatenate([values.astype(np.float32) for values in parts])
    assert read(tmp_path, x=Column("x", width=3))["x"].tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("metadata", "found"),
    [
        (None, "neither dtype nor width"),
        ({"dtype": "float32"}, "dtype 'float32' and width ''"),
        ({"dtype": "complex64", "width": "3"}, "dtype 'complex64' and width '3'"),
        ({"dtype": "float32", "width": "three"}, "dtype 'float32' and width 'three'"),
        ({"dtype": "float32", "width": "0"}, "dtype 'float32' and width '0'"),
    ],
)
def test_missing_or_invalid_metadata(tmp_path, metadata, found):
    field = pa.field("x", pa.binary(12), metadata=metadata)
    pq.write_table(pa.table([pa.array([bytes(12)], pa.binary(12))], schema=pa.schema([field])), tmp_path / "a.parquet")
    with pytest.raises(DataError) as caught:
        ParquetTable(matching_files(str(tmp_path)), {"x": Column("x", width=3)})
    assert f"a.parquet: column 'x': found fixed_size_binary[12] with {found} in the field's metadata" in str(
        caught.value
    )


@pytest.mark.parametrize(
    ("dtype", "width", "column", "problem"),
    [
        ("float32", 4, Column("x", width=4), "found fixed_size_binary[12], but the field's metadata says"),
        ("float32", 3, Column("x", width=4), "found binary vectors of 3 values, expected 4"),
        ("float32", 3, Column("x"), "found fixed_size_binary[12], expected one value per row"),
        ("float32", 3, Column("x", torch.int64, 3), "found vectors of 3 float32, expected integers"),
    ],
)
def test_metadata_that_contradicts_type_or_column(tmp_path, dtype, width, column, problem):
    field = pa.field("x", pa.binary(12), metadata={"dtype": dtype, "width": str(width)})
    pq.write_table(pa.table([pa.array([bytes(12)], pa.binary(12))], schema=pa.schema([field])), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=re.escape(problem)):
        ParquetTable(matching_files(str(tmp_path)), {"x": column})


def test_values_are_checked_like_those_of_lists(tmp_path):
    values = np.array([[0, 1, 2], [0, 9, 2]], np.int64)
    path = write(tmp_path / "a.parquet", values)
    problem = "row 1 (both counted from 0): column 'x': found 9 at position 1, but ids must be between 0 and 4"
    with pytest.raises(DataError, match=re.escape(problem)):
        read(path, x=Column("x", torch.int64, 3, num_ids={1: 5}))
    field = vector_field("x", "uint8", 1, "binary").with_nullable(True)
    array = pa.array([b"1", None], pa.binary(1))
    pq.write_table(pa.Table.from_arrays([array], schema=pa.schema([field])), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"row 1 .*: column 'x': found null"):
        read(path, x=Column("x", width=1))
