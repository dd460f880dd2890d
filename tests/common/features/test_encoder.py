"""Encoded row groups equal rows that plain Python encodes one by one."""

import datetime
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.features.encoder import BINARY, CONTINUOUS, IDS, FeatureEncoder, embedding_key
from common.reader.files import DataError, matching_files
from common.reader.parquet import ParquetTable
from common.reader.vectors import vector_array, vector_field
from tests.support.encoded_rows import encode_row, parse_features

NUMBER_TYPES = [
    *(pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()),
    *(pa.float16(), pa.float32(), pa.float64(), pa.bool_(), pa.decimal128(9, 2), pa.decimal256(50, 3)),
    pa.dictionary(pa.int8(), pa.float64()),
]
TEXT_TYPES = [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int16(), pa.string())]
LIST_TYPES = {"list": pa.list_, "large": pa.large_list, "fixed": lambda kind: pa.list_(kind, 3)}
INTEGERS = NUMBER_TYPES[:8]


def encode(folder: Path, table: pa.Table, features: Mapping[str, Any], row_group_size: int = 4) -> list[dict[str, Any]]:
    """Write a table, read it, and return its encoded rows as encode_row() does."""
    pq.write_table(table, folder / "data.parquet", row_group_size=row_group_size)
    encoder = FeatureEncoder.open(parse_features(features))
    decoded = ParquetTable(matching_files(str(folder / "data.parquet")), {}, encoder=encoder)
    groups = [decoded.decode(group) for group in range(len(decoded.rows_per_group))]
    names = {"continuous": CONTINUOUS, "binary": BINARY, "ids": IDS}
    names |= {name: embedding_key(name) for name in encoder.layout.embeddings}
    stored = {name: np.concatenate([group[key] for group in groups]) for name, key in names.items()}
    assert [values.dtype for values in stored.values()] == [
        np.dtype(kind) for kind in ["float32", "uint8", "int32", *["float32"] * (len(stored) - 3)]
    ]
    assert sum(values.nbytes for values in stored.values()) == encoder.bytes_per_row * decoded.num_rows
    return [{name: values[row].tolist() for name, values in stored.items()} for row in range(decoded.num_rows)]


def check(folder: Path, table: pa.Table, features: Mapping[str, Any], **vocabularies: Mapping[Any, int]) -> None:
    expected = [encode_row(row, parse_features(features), vocabularies) for row in table.to_pylist()]
    for row_group_size in (len(table), 3):
        encoded = encode(folder, table, features, row_group_size)
        for row, (own, other) in enumerate(zip(encoded, expected, strict=True)):
            assert own.keys() == other.keys()
            for name in own:
                np.testing.assert_allclose(own[name], other[name], rtol=1e-6, err_msg=f"row {row}, {name}")


def error_of(folder: Path, table: pa.Table, features: Mapping[str, Any]) -> str:
    with pytest.raises(DataError) as caught:
        encode(folder, table, features)
    prefix = f"{folder / 'data.parquet'}: "
    assert str(caught.value).startswith(prefix)
    return str(caught.value).removeprefix(prefix)


def array(values: list[Any], kind: pa.DataType) -> pa.Array:
    if pa.types.is_dictionary(kind):
        return pa.array(values, kind.value_type).dictionary_encode().cast(kind)
    if pa.types.is_string_view(kind):
        return pa.array(values, pa.string()).cast(kind)
    return pa.array(values, kind)


# Numbers and booleans.


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


def test_columns_of_nulls_alone_are_missing(tmp_path):
    table = pa.table({name: pa.nulls(4) for name in "abcdefg"})
    features = {
        "a": {"kind": "number", "missing": 3.0},
        "b": {"kind": "numbers", "length": 2, "missing": [1.0, 2.0]},
        "c": {"kind": "boolean"},
        "d": {"kind": "category", "num_values": 3},
        "e": {"kind": "categories", "hash_buckets": 5, "num_hashes": 2, "max_length": 3},
        "f": {"kind": "timestamp"},
        "g": {"kind": "embedding", "length": 2},
    }
    check(tmp_path, table, features)


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


# Categories.


def vocabulary(folder: Path, values: list[Any]) -> tuple[str, dict[Any, int]]:
    path = folder / f"{type(values[0]).__name__}.parquet"
    pq.write_table(pa.table({"value": values, "index": range(len(values))}), path)
    return str(path), {value: index for index, value in enumerate(values)}


TEXTS = ["a", "b", None, "", "unknown", "a", "é", "a much longer value than thirty-two bytes", "b", None]


@pytest.mark.parametrize("kind", TEXT_TYPES, ids=str)
def test_strings_of_every_type(tmp_path, kind):
    path, indices = vocabulary(tmp_path, ["b", "a", "é"])
    table = pa.table({"c": array(TEXTS, kind)})
    features = {
        "c": {"kind": "category", "vocabulary": path},
        "one": {"kind": "category", "column": "c", "hash_buckets": 1000},
        "two": {"kind": "category", "column": "c", "hash_buckets": 7, "num_hashes": 2},
    }
    check(tmp_path, table, features, **{path: indices})
    check(tmp_path, pa.table({"c": array([None, None, None], kind)}), features, **{path: indices})


CATEGORY_INTEGERS = [0, 1, None, 5, 7, 127, 1, None, 100]


@pytest.mark.parametrize("kind", [*INTEGERS, pa.float32(), pa.float64(), pa.dictionary(pa.int8(), pa.int64())], ids=str)
@pytest.mark.parametrize("with_nulls", [True, False])
def test_integers_of_every_type(tmp_path, kind, with_nulls):
    path, indices = vocabulary(tmp_path, [7, -3, 1])
    values = [value for value in CATEGORY_INTEGERS if with_nulls or value is not None]
    features = {
        "c": {"kind": "category", "vocabulary": path},
        "numbered": {"kind": "category", "column": "c", "num_values": 6},
        "one": {"kind": "category", "column": "c", "hash_buckets": 1000},
        "two": {"kind": "category", "column": "c", "hash_buckets": 7, "num_hashes": 2},
    }
    check(tmp_path, pa.table({"c": array(values, kind)}), features, **{path: indices})


def test_extreme_integers_and_booleans(tmp_path):
    path, indices = vocabulary(tmp_path, [0, 2**63 - 1, -(2**63)])
    features = {
        "c": {"kind": "category", "vocabulary": path},
        "numbered": {"kind": "category", "column": "c", "num_values": 2},
        "hashed": {"kind": "category", "column": "c", "hash_buckets": 1000},
    }
    check(tmp_path, pa.table({"c": [2**63 - 1, -(2**63), -1, 2**62]}), features, **{path: indices})
    check(tmp_path, pa.table({"c": [True, None, False]}), features, **{path: indices})


def test_values_that_are_no_integers_are_unknown(tmp_path):
    path, indices = vocabulary(tmp_path, [0, 1])
    features = {
        "c": {"kind": "category", "vocabulary": path},
        "numbered": {"kind": "category", "column": "c", "num_values": 2},
    }
    table = pa.table({"c": [1.0, 0.5, float("inf"), -float("inf"), 1e300, None, float("nan"), -0.0]})
    check(tmp_path, table, features, **{path: indices})
    check(tmp_path, pa.table({"c": pa.array([1, 2**63, None, 2**64 - 1], pa.uint64())}), features, **{path: indices})


@pytest.mark.parametrize(
    ("kind", "bad"), [(pa.uint64(), 2**63), (pa.float64(), 0.5), (pa.dictionary(pa.int8(), pa.float64()), 0.5)]
)
def test_values_that_have_no_hash_are_an_error_of_their_row(tmp_path, kind, bad):
    table = pa.table({"c": array([1, 2, None, 3, None, bad, 1], kind)})
    message = (
        f"row group 1, row 1 (both counted from 0): column 'c': found {bad}, but hash_buckets takes strings and "
        "integers from -2^63 to 2^63 - 1; use kind: number for others"
    )
    assert error_of(tmp_path, table, {"c": {"kind": "category", "hash_buckets": 10}}) == message
    element = kind.value_type if pa.types.is_dictionary(kind) else kind
    lists = pa.table({"c": pa.array([[1], [2, 2], None, [], [], [3, bad], [1]], pa.list_(element))})
    assert error_of(tmp_path, lists, {"c": {"kind": "categories", "hash_buckets": 10}}) == message


LISTS = [["a", "b"], None, [], ["b", None, "unknown", "a"], [None], ["a"] * 9, [], ["c"], None, ["a", "b"]]


@pytest.mark.parametrize("lists", [pa.list_, pa.large_list])
@pytest.mark.parametrize("kind", [*TEXT_TYPES[:3], pa.dictionary(pa.int32(), pa.string())], ids=str)
def test_lists_of_strings(tmp_path, lists, kind):
    path, indices = vocabulary(tmp_path, ["b", "a"])
    values = pa.array(LISTS, lists(pa.string())).cast(lists(kind))
    features = {
        "c": {"kind": "categories", "vocabulary": path, "max_length": 3},
        "long": {"kind": "categories", "column": "c", "vocabulary": path, "max_length": 20},
        "two": {"kind": "categories", "column": "c", "hash_buckets": 7, "num_hashes": 2, "max_length": 4},
    }
    check(tmp_path, pa.table({"c": values}), features, **{path: indices})


@pytest.mark.parametrize("kind", [*INTEGERS, pa.float64()], ids=str)
def test_lists_of_integers(tmp_path, kind):
    path, indices = vocabulary(tmp_path, [7, 1])
    values = [[1, 7], None, [], [7, None, 9, 1], [None], [1] * 9, [], [100], None]
    features = {
        "c": {"kind": "categories", "vocabulary": path, "max_length": 3},
        "numbered": {"kind": "categories", "column": "c", "num_values": 8, "max_length": 1},
        "two": {"kind": "categories", "column": "c", "hash_buckets": 7, "num_hashes": 2, "max_length": 4},
    }
    check(tmp_path, pa.table({"c": pa.array(values, pa.list_(kind))}), features, **{path: indices})


@pytest.mark.parametrize("kind", [pa.string(), pa.int64()])
@pytest.mark.parametrize("max_length", [1, 2, 5])
def test_fixed_lists_and_binary_vectors_of_categories(tmp_path, kind, max_length):
    values = [["1", "2"], None, ["3", None], ["1", "9"], ["2", "2"]]
    converted = pa.array(values, pa.list_(pa.string(), 2))
    if kind == pa.int64():
        numbers = [None if row is None else [None if each is None else int(each) for each in row] for row in values]
        converted = pa.array(numbers, pa.list_(kind, 2))
    features = {"c": {"kind": "categories", "hash_buckets": 50, "max_length": max_length}}
    check(tmp_path, pa.table({"c": converted}), features)
    if kind == pa.int64():
        field = vector_field("c", "int64", 2, "binary")
        stored = vector_array(np.array([[1, 2], [3, 4], [5, 5]]), field)
        rows = encode(tmp_path, pa.Table.from_arrays([stored], schema=pa.schema([field])), features)
        lists = pa.table({"c": [[1, 2], [3, 4], [5, 5]]})
        assert rows == encode(tmp_path, lists, features)


def test_lists_of_nulls_alone(tmp_path):
    values = pa.array([[], None, [None], [None, None]], pa.list_(pa.null()))
    check(tmp_path, pa.table({"c": values}), {"c": {"kind": "categories", "num_values": 3, "max_length": 4}})


def test_more_values_than_are_encoded_at_once(tmp_path):
    path, indices = vocabulary(tmp_path, [*map(str, range(0, 40_000, 2))])
    values = [None if value % 100 == 7 else str(value) for value in range(40_000)]
    features = parse_features(
        {"c": {"kind": "category", "vocabulary": path}, "l": {"kind": "categories", "vocabulary": path}}
    )
    table = pa.table({"c": values, "l": pa.ListArray.from_arrays(np.arange(40_001, dtype=np.int32), pa.array(values))})
    ids = FeatureEncoder.open(features).encode(table, "location")[IDS]
    expected = [0 if value is None else indices.get(value, -1) + 2 for value in values]
    assert ids[:, 0].tolist() == ids[:, 1].tolist() == expected
    bad = pa.table({"c": [*range(39_999), 0.5]})
    encoder = FeatureEncoder.open(parse_features({"c": {"kind": "category", "hash_buckets": 10}}))
    with pytest.raises(DataError, match=r"location, row 39999 .*found 0\.5"):
        encoder.encode(bad, "location")


@pytest.mark.parametrize("seed", range(5))
def test_sliced_and_chunked_arrays_and_dictionaries_with_nulls(seed):
    """Arrow data that files do not yield, but that the format allows."""
    generator = np.random.default_rng(seed)
    texts = ["a", "b", None, "d", "e", "f"]

    def chunk() -> tuple[pa.Array, pa.Array]:
        dictionary = pa.array(generator.permutation(np.array(texts, object)).tolist(), pa.string())
        indices = pa.array([None if code == 9 else int(code) for code in generator.choice([0, 1, 2, 3, 9], 20)])
        values = pa.DictionaryArray.from_arrays(indices, dictionary)
        lengths = generator.integers(0, 5, 6)
        lengths = np.minimum(np.cumsum(lengths), 20)
        offsets = pa.array([None if generator.random() < 0.2 else int(end) for end in [0, *lengths[:-1]]] + [20])
        return values[3:17], pa.ListArray.from_arrays(offsets, values)[1:5]

    chunks = [chunk() for _ in range(3)]
    features = parse_features(
        {
            "c": {"kind": "category", "hash_buckets": 100},
            "l": {"kind": "categories", "hash_buckets": 100, "max_length": 2},
        }
    )
    for name, index in (("c", 0), ("l", 1)):
        column = pa.chunked_array([each[index] for each in chunks])
        own = {name: features[name]}
        encoded = FeatureEncoder.open(own).encode(pa.table({name: column}), "location")[IDS]
        rows = [value for chunk in column.chunks for value in chunk.to_pylist()]
        assert encoded.tolist() == [encode_row({name: value}, own, {})["ids"] for value in rows]


# Timestamps.

MOMENTS = [
    *("2026-03-29T00:59:59", "2026-03-29T01:00:00", "2026-10-25T00:59:59.999999", "2026-10-25T01:00:00"),
    *("1969-12-31T23:59:59.5", "1900-01-01T00:00:00", "1945-08-01T12:30:00", "2099-07-01T21:00:00"),
    *("2000-02-29T23:30:00", "1893-03-31T23:06:31", "1893-03-31T23:06:32"),
]


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "Asia/Kathmandu", "America/St_Johns", "Africa/Casablanca"])
@pytest.mark.parametrize(
    "kind", [*map(pa.timestamp, ("s", "ms", "us", "ns")), pa.timestamp("us", "Asia/Tokyo")], ids=str
)
def test_hours_and_days_of_timestamps(tmp_path, zone, kind):
    moments: list[Any] = [datetime.datetime.fromisoformat(text) for text in MOMENTS]
    if kind.unit == "s":
        moments = [moment.replace(microsecond=0) for moment in moments]
    elif kind.unit == "ms":
        moments = [moment.replace(microsecond=moment.microsecond // 1000 * 1000) for moment in moments]
    if kind.tz:
        moments = [moment.replace(tzinfo=datetime.UTC) for moment in moments]
    table = pa.table({"t": pa.array([*moments, None], kind)})
    check(tmp_path, table, {"t": {"kind": "timestamp", "time_zone": zone}})
    check(tmp_path, table, {"t": {"kind": "timestamp", "time_zone": zone, "hour_of_day": False}})


@pytest.mark.parametrize("unit", ["days", "hours", "minutes", "seconds", "ms", "us", "ns"])
@pytest.mark.parametrize("kind", [pa.int64(), pa.float64()], ids=str)
def test_integers_with_a_unit(tmp_path, unit, kind):
    seconds = {"days": 86400, "hours": 3600, "minutes": 60, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}.get(unit, 1)
    values = [None if value is None else round(value / seconds) for value in (0, 1.7e9, -1.5e9, None, 86399, 12345)]
    table = pa.table({"t": pa.array(values, pa.int64()).cast(kind, safe=False)})
    check(tmp_path, table, {"t": {"kind": "timestamp", "unit": unit, "time_zone": "America/New_York"}})


def test_dates_and_ages(tmp_path):
    day = datetime.date
    table = pa.table(
        {
            "born": pa.array([day(1970, 1, 1), day(1969, 12, 31), None, day(9999, 12, 31), day(1, 1, 1)], pa.date32()),
            "seen": pa.array([day(2020, 2, 29), day(1960, 1, 1), day(2000, 1, 1), None, day(2, 1, 1)], pa.date64()),
            "at": [86_400_000, 500, 0, None, -62135596800000],
            "time": pa.array([0, 1, 2**40, -(2**40), None], pa.timestamp("us", "UTC")),
        }
    )
    for unit in ("days", "hours", "minutes", "seconds", "ms", "us", "ns"):
        age = {"unit": unit, "missing": -1.0, "indicator": True}
        features = {
            "born": {"kind": "timestamp", "age": {"before": "seen", **age}},
            "at": {"kind": "timestamp", "unit": "ms", "day_of_week": False, "age": {"before": "time", **age}},
            "time": {"kind": "timestamp", "age": {"before": "at", "before_unit": "ms", "unit": unit}},
        }
        check(tmp_path, table, features)


@pytest.mark.parametrize("unit", ["days", "seconds", "ns"])
@pytest.mark.parametrize("kind", [pa.int64(), pa.uint64(), pa.float64()], ids=str)
def test_times_outside_of_the_calendar_are_missing(tmp_path, unit, kind):
    values = [2**62, 0, 10**12, 10**15] if unit != "ns" else [0, 1, 2**62]
    table = pa.table({"t": pa.array(values, pa.int64()).cast(kind, safe=False)})
    check(tmp_path, table, {"t": {"kind": "timestamp", "unit": unit, "time_zone": "Asia/Tokyo"}})


def test_the_last_days_of_the_calendar_have_a_time_zone(tmp_path):
    table = pa.table({"t": pa.array([253_402_300_799, -62_135_596_800], pa.timestamp("s"))})
    rows = encode(tmp_path, table, {"t": {"kind": "timestamp", "time_zone": "Asia/Tokyo"}})
    assert rows[0]["ids"] == [(23 + 9) % 24 + 2, 5 + 2]  # Friday night in UTC, Saturday morning in Tokyo
    assert rows[1]["ids"][1] == 0 + 2


def test_fractions_of_small_ages_are_exact(tmp_path):
    table = pa.table(
        {
            "a": pa.array([1_700_000_000_123_456_789], pa.timestamp("ns")),
            "b": pa.array([1_700_000_000_123_456_791], pa.timestamp("ns")),
        }
    )
    rows = encode(tmp_path, table, {"a": {"kind": "timestamp", "age": {"before": "b", "unit": "ns"}}})
    assert rows[0]["continuous"] == pytest.approx([2.0], rel=1e-6)


# Wrong columns.


@pytest.mark.parametrize(
    ("values", "feature", "problem"),
    [
        (["a"], {"kind": "number"}, "found string, expected integers, floats, decimals or booleans"),
        ([[1.0]], {"kind": "number"}, "found list<element: double>, expected integers, floats, decimals or booleans"),
        ([1.0], {"kind": "numbers", "length": 2}, "found double, expected lists of 2 integers, floats, decimals or"),
        ([["a"]], {"kind": "embedding", "length": 2}, "found list<element: string>, expected lists of 2 integers"),
        (["true"], {"kind": "boolean"}, "found string, expected booleans, or numbers that are 0 or 1"),
        ([b"a"], {"kind": "category", "hash_buckets": 3}, "found binary, expected strings or integers"),
        ([{"a": 1}], {"kind": "category", "hash_buckets": 3}, "found struct<a: int64>, expected strings or integers"),
        ([["a"]], {"kind": "category", "hash_buckets": 3}, "found list<element: string>, expected strings or integers"),
        (["a"], {"kind": "category", "num_values": 3}, "found string, expected integers, because num_values is set"),
        (["a"], {"kind": "categories", "num_values": 3}, "found string, expected lists of strings or integers"),
        (
            [["a"]],
            {"kind": "categories", "num_values": 3},
            "found list<element: string>, expected lists of integers, because num_values is set",
        ),
        ([[["a"]]], {"kind": "categories", "hash_buckets": 3}, "expected lists of strings or integers"),
        (pa.array([b"ab"], pa.binary(2)), {"kind": "categories", "hash_buckets": 3}, "neither dtype nor width"),
        (pa.array([b"ab"], pa.binary(2)), {"kind": "embedding", "length": 2}, "neither dtype nor width"),
        (["2026-01-01"], {"kind": "timestamp"}, "found string, expected timestamps, dates, or integers with a unit"),
        ([1], {"kind": "timestamp"}, "expected timestamps or dates, because unit is null. Set unit for integers"),
        (
            pa.array([1], pa.timestamp("ms")),
            {"kind": "timestamp", "unit": "ms"},
            "found timestamp[ms], whose unit is known, but unit is ms. Remove unit",
        ),
        (
            pa.array([1], pa.timestamp("ms")),
            {"kind": "timestamp", "age": {"before": "x", "before_unit": "ms"}},
            "found timestamp[ms], whose unit is known, but age.before_unit is ms. Remove age.before_unit",
        ),
    ],
)
def test_a_column_of_a_wrong_type_is_an_error_at_opening(tmp_path, values, feature, problem):
    message = error_of(tmp_path, pa.table({"x": values}), {"x": feature})
    assert message.startswith("column 'x': found ")
    assert problem in message


def test_missing_and_repeated_columns_are_errors_at_opening(tmp_path):
    table = pa.table({"a": [1], "b": [2]})
    expected = "no column 'x', or more than one; columns found: a, b"
    assert error_of(tmp_path, table, {"x": {"kind": "number"}}) == expected
    twice = pa.Table.from_arrays([pa.array([1])] * 2, names=["x", "x"])
    assert error_of(tmp_path, twice, {"x": {"kind": "number"}}).startswith("no column 'x', or more than one")


def test_vocabularies_and_columns_have_one_type(tmp_path):
    texts, _ = vocabulary(tmp_path, ["a"])
    integers, _ = vocabulary(tmp_path, [1])
    assert error_of(tmp_path, pa.table({"c": [1]}), {"c": {"kind": "category", "vocabulary": texts}}) == (
        f"column 'c': found int64, expected strings, because those are the values of the vocabulary {texts}"
    )
    assert error_of(tmp_path, pa.table({"c": ["a"]}), {"c": {"kind": "category", "vocabulary": integers}}) == (
        f"column 'c': found string, expected integers, because those are the values of the vocabulary {integers}"
    )


def test_hashed_columns_of_one_table_have_one_type(tmp_path):
    features = {
        "item": {"kind": "category", "hash_buckets": 9, "table": "t"},
        "last": {"kind": "categories", "hash_buckets": 9, "table": "t"},
    }
    assert error_of(tmp_path, pa.table({"item": [1], "last": [["1"]]}), features) == (
        "column 'last': found list<element: string>, expected lists of integers, because other values of the same "
        "table are integers, first in column 'item'"
    )
    encode(tmp_path, pa.table({"item": [1.0], "last": [[1, None]]}), features)
    encode(tmp_path, pa.table({"item": pa.nulls(1), "last": [["1"]]}), features)
