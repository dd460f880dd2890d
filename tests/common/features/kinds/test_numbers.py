"""Encoded numbers, vectors and booleans equal rows that plain Python encodes one by one."""

from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from common.reader.vectors import vector_array, vector_field
from tests.support.encoded_tables import array, check, encode, error_of

NUMBER_TYPES = [
    *(pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()),
    *(pa.float16(), pa.float32(), pa.float64(), pa.bool_(), pa.decimal128(9, 2), pa.decimal256(50, 3)),
    pa.dictionary(pa.int8(), pa.float64()),
]


@pytest.mark.parametrize("kind", NUMBER_TYPES, ids=str)
@pytest.mark.parametrize("values", [[0, 1, None, 1, 1], [1, 0, 1, 0, 1], [None] * 5])
def test_numbers_of_every_type(tmp_path, kind, values):
    converted = [None if value is None else bool(value) if pa.types.is_boolean(kind) else value for value in values]
    if pa.types.is_decimal(kind):
        converted = [None if value is None else Decimal(value) for value in values]
    if kind == pa.float16():
        converted = [None if value is None else np.float16(value) for value in values]
    table = pa.table({"x": array(converted, kind)})
    check(tmp_path, table, {"x": {"kind": "number", "missing": -7.5, "indicator": True}})
    check(tmp_path, table, {"x": {"kind": "number"}})
    check(tmp_path, table, {"x": {"kind": "boolean", "missing": True, "indicator": True}})
    check(tmp_path, table, {"b": {"kind": "boolean", "column": "x"}})


def test_nan_infinities_and_numbers_beyond_float32_are_missing(tmp_path):
    values = [1.5, float("nan"), float("inf"), -float("inf"), 1e300, -1e39, 3e38, None, 1e-50]
    table = pa.table({"x": values, "y": pa.array(values[:5] + values[:4], pa.float32())})
    features = {name: {"kind": "number", "missing": 2.0, "indicator": True} for name in "xy"}
    check(tmp_path, table, features)


def test_large_integers_are_rounded_alike_with_and_without_nulls(tmp_path):
    large = 2**60 + 2**36 + 1
    rows = encode(tmp_path, pa.table({"x": [large, large, large, None]}), {"x": {"kind": "number"}}, 2)
    assert rows[0] == rows[2]


@pytest.mark.parametrize(("kind", "bad"), [(pa.int64(), 2), (pa.float64(), 0.5)])
def test_a_boolean_is_0_or_1(tmp_path, kind, bad):
    table = pa.table({"x": pa.array([0, 1, None, 1, 1, bad], kind)})
    assert error_of(tmp_path, table, {"x": {"kind": "boolean"}}) == (
        f"row group 1, row 1 (both counted from 0): column 'x': found {bad}, but a boolean must be true, false, 0, 1 "
        "or null"
    )


# Vectors.


def vector_columns(values: list[Any], length: int) -> dict[str, pa.Array]:
    """Return lists of every type, with and without nulls."""
    columns = {}
    for number_type in (pa.float32(), pa.float64(), pa.int64(), pa.float16()):
        numbers = values
        if number_type in (pa.int64(), pa.float16()):
            numbers = [
                None if row is None else [None if each is None else number_type.to_pandas_dtype()(each) for each in row]
                for row in values
            ]
        for name, kind in (
            ("list", pa.list_(number_type)),
            ("large", pa.large_list(number_type)),
            ("fixed", pa.list_(number_type, length)),
        ):
            columns[f"{name} {number_type}"] = pa.array(numbers, kind)
    return columns


def test_vectors_of_every_type(tmp_path):
    with_nulls: list[Any] = [[1.0, 2.0], None, [3.0, None], [5.0, 6.0], None, [7.0, 8.0], [None, None]]
    for values in (with_nulls, [[float(i), 2.0] for i in range(7)]):
        columns = vector_columns(values, 2)
        missing = {"missing": [0.5, -0.5], "indicator": True, "length": 2}
        features: dict[str, Any] = {name: {"kind": "numbers", **missing} for name in columns}
        features |= {f"{name}, part": {"kind": "embedding", "column": name, "length": 2} for name in columns}
        check(tmp_path, pa.table(columns), features)


@pytest.mark.parametrize("dtype", ["float16", "float32", "int8", "uint32", "bool"])
def test_binary_vectors(tmp_path, dtype):
    field = vector_field("v", dtype, 3, "binary").with_nullable(True)
    stored = vector_array(np.arange(15).reshape(5, 3).astype(dtype), field)
    with_null = pa.array([None if row == 2 else value.as_py() for row, value in enumerate(stored)], field.type)
    for values in (stored, with_null):
        rows = encode(
            tmp_path,
            pa.Table.from_arrays([values], schema=pa.schema([field])),
            {
                "v": {"kind": "numbers", "length": 3, "missing": -1.0},
                "e": {"kind": "embedding", "column": "v", "length": 3},
            },
            2,
        )
        numbers = np.arange(15).reshape(5, 3).astype(dtype).astype(float)
        for row in range(5):
            is_null = values is with_null and row == 2
            assert rows[row]["continuous"] == ([-1.0] * 3 if is_null else numbers[row].tolist())
            assert rows[row]["e"] == ([0.0] * 3 if is_null else numbers[row].tolist())


@pytest.mark.parametrize("kind", ["numbers", "embedding"])
def test_a_vector_of_another_length_is_an_error_of_its_row(tmp_path, kind):
    table = pa.table({"v": [[1.0, 2.0], None, [1.0, 2.0], None, None, [1.0]]})
    assert error_of(tmp_path, table, {"v": {"kind": kind, "length": 2}}) == (
        "row group 1, row 1 (both counted from 0): column 'v': found a list of 1 values, expected 2"
    )
    fixed = pa.table({"v": pa.array([[1.0, 2.0]], pa.list_(pa.float32(), 2))})
    assert "column 'v': found vectors of 2 values, expected 3" in error_of(
        tmp_path, fixed, {"v": {"kind": kind, "length": 3}}
    )
