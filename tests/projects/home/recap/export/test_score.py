"""score.py encodes columns exactly as the reader does, and refuses what the reader refuses."""

import datetime
import decimal
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import xxhash

from common.features.encoder import FeatureEncoder
from projects.home.recap.data.schema import Feature
from projects.home.recap.export import score
from projects.home.recap.export import xxh64 as xxh64_module
from projects.home.recap.export.xxh64 import xxh64
from tests.support.encoded_rows import parse_features
from tests.support.encoded_tables import vocabulary
from tests.support.exported_encoder import check, check_schema, open_features, open_schema

ROWS = 60


def some(rng: np.random.Generator, make: Callable[[], Any]) -> list[Any]:
    """Return random values, of which some are null."""
    return [None if rng.random() < 0.2 else make() for _ in range(ROWS)]


def number(rng: np.random.Generator) -> float:
    return float(rng.choice([rng.normal(), rng.normal() * 1e20, 1e39, -1e39, np.nan, np.inf, 0.0, 1e-42, 2.0**24 + 1]))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "kind", [pa.float64(), pa.float32(), pa.int64(), pa.uint64(), pa.int8(), pa.bool_(), pa.decimal128(20, 3)], ids=str
)
def test_numbers(tmp_path: Path, kind: pa.DataType, seed: int) -> None:
    rng = np.random.default_rng(seed)
    bits = 8 if kind == pa.int8() else 64
    makers: dict[str, Callable[[], Any]] = {
        "f": lambda: number(rng),
        "i": lambda: int(rng.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)),
        "u": lambda: int(rng.integers(0, 2**64 - 1, dtype=np.uint64)),
        "b": lambda: bool(rng.random() < 0.5),
        "d": lambda: decimal.Decimal(int(rng.integers(-(10**12), 10**12))) / 1000,
    }
    make = makers["f" if pa.types.is_floating(kind) else str(kind)[0]]
    table = pa.table(
        {
            "x": pa.array(some(rng, make), kind),
            "full": pa.array([make() for _ in range(ROWS)], kind),
            "v": pa.array(some(rng, lambda: some(rng, make)[:3]), pa.list_(kind)),
            "w": pa.array([[make() for _ in range(2)] for _ in range(ROWS)], pa.list_(kind, 2)),
        }
    )
    features = {
        "x": {"kind": "number", "missing": 0.1, "indicator": True},
        "full": {"kind": "number", "missing": 1.0},
        "unfilled": {"kind": "number", "column": "x"},
        "v": {"kind": "numbers", "length": 3, "missing": [0.1, 2.0, -3.0], "indicator": True},
        "w": {"kind": "numbers", "length": 2},
        "e": {"kind": "embedding", "column": "v", "length": 3},
        "f": {"kind": "embedding", "column": "w", "length": 2},
    }
    check(tmp_path, table, features)


def test_booleans(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    columns = {
        "b": pa.array(some(rng, lambda: bool(rng.random() < 0.5)), pa.bool_()),
        "i": pa.array(some(rng, lambda: int(rng.integers(2))), pa.int64()),
        "f": pa.array(some(rng, lambda: float(rng.choice([0, 1, np.nan, 1 + 1e-12]))), pa.float64()),
        "full": pa.array([bool(rng.random() < 0.5) for _ in range(ROWS)]),
    }
    features = {name: {"kind": "boolean", "indicator": name != "b", "missing": name == "i"} for name in columns}
    check(tmp_path, pa.table(columns), features)


TEXTS = ["", "a", "de", "größer", "abc\0d", "item-12345", "x" * 31, "y" * 32, "z" * 33, "long, " * 20, "🙂" * 9]
INTEGERS = [0, 1, 2, 5, 6, 7, -1, 2**53 + 1, 2**63 - 1, -(2**63), 1_000_003]


@pytest.mark.parametrize("seed", range(3))
def test_categories_of_strings(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    path, _ = vocabulary(tmp_path, TEXTS[:6])
    strings = some(rng, lambda: TEXTS[rng.integers(len(TEXTS))])
    lists = some(rng, lambda: some(rng, lambda: TEXTS[rng.integers(len(TEXTS))])[: rng.integers(6)])
    table = pa.table({"x": pa.array(strings, pa.string()), "v": pa.array(lists, pa.list_(pa.string()))})
    check(tmp_path, table, categories(path))


@pytest.mark.parametrize("kind", [pa.int64(), pa.float64(), pa.uint64(), pa.bool_(), pa.int8()], ids=str)
def test_categories_of_integers(tmp_path: Path, kind: pa.DataType) -> None:
    rng = np.random.default_rng(0)
    path, _ = vocabulary(tmp_path, INTEGERS[1:])
    values: list[Any] = [each for each in INTEGERS if kind != pa.int8() or abs(each) < 128]
    if kind == pa.float64():
        values = [float(each) for each in INTEGERS[:7]] + [np.nan, -0.0, 2.0**62]
    elif kind == pa.uint64():
        values = [each for each in INTEGERS if each >= 0]
    elif kind == pa.bool_():
        values = [True, False]
    integers = some(rng, lambda: values[rng.integers(len(values))])
    lists = some(rng, lambda: some(rng, lambda: values[rng.integers(len(values))])[: rng.integers(6)])
    columns = {"x": pa.array(integers, kind), "v": pa.array(lists, pa.list_(kind))}
    check(tmp_path, pa.table(columns), categories(path) | {"n": {"kind": "category", "column": "x", "num_values": 6}})


def categories(path: str) -> dict[str, dict[str, Any]]:
    hashed = {"hash_buckets": 11, "num_hashes": 2}
    return {
        "hashed": {"kind": "category", "column": "x", "hash_buckets": 7},
        "twice": {"kind": "category", "column": "x", **hashed},
        "known": {"kind": "category", "column": "x", "vocabulary": path, "table": "shared"},
        "lists": {"kind": "categories", "column": "v", "hash_buckets": 5, "max_length": 3},
        "lists twice": {"kind": "categories", "column": "v", **hashed, "max_length": 3, "pooling": "sum"},
        "long": {"kind": "categories", "column": "v", **hashed, "max_length": 8},
        "known lists": {"kind": "categories", "column": "v", "vocabulary": path, "table": "shared", "max_length": 1},
    }


def test_values_that_are_no_integers_are_unknown(tmp_path: Path) -> None:
    path, _ = vocabulary(tmp_path, [1, 2, 3])
    values = [0.5, np.inf, -np.inf, 1e300, 3.0, None, 2.0**63, -(2.0**63)]
    features = {
        "known": {"kind": "category", "column": "x", "vocabulary": path},
        "numbered": {"kind": "category", "column": "x", "num_values": 4},
    }
    check(tmp_path, pa.table({"x": pa.array(values, pa.float64())}), features)
    check(tmp_path, pa.table({"x": pa.array([2**64 - 1, 2**63, 3, 0, 1], pa.uint64())}), features)


ZONES = ["UTC", "Europe/Berlin", "Asia/Kathmandu", "America/St_Johns", "Africa/Casablanca"]
AGE: dict[str, Any] = {"missing": -0.5, "indicator": True}


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_timestamps(tmp_path: Path, unit: str, zone: str) -> None:
    rng = np.random.default_rng(len(zone))
    per_second = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    seconds = 10**9 if unit == "ns" else 6 * 10**10
    moments = some(rng, lambda: int(rng.integers(-seconds * per_second, seconds * per_second)))
    later = [None if moment is None else moment + int(rng.integers(0, 3 * per_second)) for moment in moments]
    table = pa.table({"t": pa.array(moments, pa.timestamp(unit)), "u": pa.array(later, pa.timestamp(unit))})
    features = {
        "t": {"kind": "timestamp", "time_zone": zone, "age": {"before": "u", "unit": "seconds", **AGE}},
        "day": {"kind": "timestamp", "column": "t", "time_zone": zone, "hour_of_day": False},
        "hour": {"kind": "timestamp", "column": "u", "time_zone": zone, "day_of_week": False},
    }
    check(tmp_path, table, features)


@pytest.mark.parametrize("unit", ["days", "hours", "minutes", "seconds", "ms", "us", "ns"])
@pytest.mark.parametrize("kind", [pa.int64(), pa.float64(), pa.uint64()], ids=str)
def test_times_as_numbers(tmp_path: Path, kind: pa.DataType, unit: str) -> None:
    rng = np.random.default_rng(0)
    scale = {"days": 1 / 86400, "hours": 1 / 3600, "minutes": 1 / 60, "ms": 1e3, "us": 1e6, "ns": 1e9}.get(unit, 1.0)

    def moments() -> pa.Array:
        sign = 1 if kind == pa.uint64() else rng.choice([-1, 1])
        seconds = some(rng, lambda: sign * rng.exponential(1e9) * scale * (100 if rng.random() < 0.1 else 1))
        if kind != pa.float64():
            seconds = [None if each is None else int(np.clip(each, -(2.0**62), 2.0**62)) for each in seconds]
        return pa.array(seconds, kind)

    own = {"kind": "timestamp", "unit": unit, "time_zone": "America/New_York"}
    table = pa.table({"t": moments(), "u": moments()})
    check(tmp_path, table, {"t": own | {"age": {"before": "u", "before_unit": unit, "unit": unit, **AGE}}})


def test_dates_and_times_with_zones(tmp_path: Path) -> None:
    day = datetime.date
    days = [day(1970, 1, 1), day(1969, 12, 31), None, day(9999, 12, 31), day(1, 1, 1), day(2024, 3, 31)]
    table = pa.table(
        {
            "born": pa.array(days, pa.date32()),
            "seen": pa.array(days[::-1], pa.date64()),
            "at": pa.array([0, 1, 2**40, -(2**40), None, 10**15], pa.timestamp("us", "Asia/Tokyo")),
        }
    )
    features = {
        "born": {"kind": "timestamp", "time_zone": "Europe/Berlin", "age": {"before": "seen", "unit": "days", **AGE}},
        "at": {"kind": "timestamp", "time_zone": "Asia/Tokyo", "age": {"before": "born", "unit": "us", **AGE}},
    }
    check(tmp_path, table, features)


def test_columns_of_nulls(tmp_path: Path) -> None:
    features = {
        "a": {"kind": "number", "missing": 3.0},
        "b": {"kind": "numbers", "length": 2, "missing": [1.0, 2.0]},
        "c": {"kind": "boolean"},
        "d": {"kind": "category", "num_values": 3},
        "e": {"kind": "categories", "hash_buckets": 5, "num_hashes": 2, "max_length": 3},
        "f": {"kind": "timestamp"},
        "g": {"kind": "embedding", "length": 2},
    }
    check(tmp_path, pa.table({name: pa.nulls(6) for name in features}), features)


def test_hashes_without_xxhash() -> None:
    rng = np.random.default_rng(0)
    for length in [*range(70), 1000]:
        data, seed = rng.bytes(length), int(rng.integers(2**64 - 1, dtype=np.uint64))
        assert xxh64(data, seed) == xxhash.xxh64_intdigest(data, seed)


def test_score_is_short_and_imports_nothing_of_this_project() -> None:
    for module in (score, xxh64_module):
        assert module.__file__ is not None
        text = Path(module.__file__).read_text()
        assert len(text.splitlines()) <= 200
        assert not re.search(r"^\s*(from|import) (common|core|projects)\b", text, re.MULTILINE)


def stored(width: int, dtype: torch.dtype = torch.float32, **others: Any) -> Feature:
    return Feature(others.pop("column", "x"), dtype, width, others.pop("keep", width), **others)


@pytest.mark.parametrize(
    "kind", [pa.float64(), pa.float32(), pa.float16(), pa.int64(), pa.uint8(), pa.bool_()], ids=str
)
def test_vectors_of_a_schema(tmp_path: Path, kind: pa.DataType) -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 2, (ROWS, 5)) if kind != pa.uint8() else rng.integers(0, 255, (ROWS, 5))
    numbers: Any = values.astype(np.float64) * (1 if kind != pa.float64() else 1 / 3)
    features = {
        "continuous": stored(5, column="renamed", keep=3),
        "binary": stored(5, keep=2, positions=(1, 4), narrow=torch.bool),
        "user_embedding": stored(5, narrow=torch.bfloat16),
        "user_eng_embedding": stored(5, narrow=torch.float16),
        "author_embedding": stored(5, column="renamed"),
    }
    lists = pa.array(numbers.tolist(), pa.list_(pa.float64())).cast(pa.list_(kind))
    check_schema(tmp_path, pa.table({"x": lists, "renamed": lists}), features)


def test_special_numbers_of_a_schema_are_missing_as_for_the_model(tmp_path: Path) -> None:
    halfway = [1 + 2**-8, 1 + 3 * 2**-8]  # between two numbers of bfloat16: rounded to the even one
    values = [[np.nan, 1e300], [np.inf, 65504.0], [-np.inf, -0.0], [1e-42, 3.14159], [5e4, 1e-9], halfway]
    features = {"continuous": stored(2), "user_embedding": stored(2, narrow=torch.bfloat16)}
    check_schema(tmp_path, pa.table({"x": pa.array(values, pa.list_(pa.float64(), 2))}), features)


def test_discrete_features_keep_all_bits(tmp_path: Path) -> None:
    values = [[2**63 - 1, 0], [-(2**63), 2], [2**53 + 1, 1]]
    table = pa.table({"x": pa.array(values, pa.list_(pa.int64()))})
    check_schema(tmp_path, table, {"discrete": stored(2, torch.int64)}, {1: 3})
    small = pa.table({"x": pa.array([[255, 0], [0, 2]], pa.list_(pa.int64()))})
    check_schema(tmp_path, small, {"discrete": stored(2, torch.int64, narrow=torch.uint8)}, {1: 3})


@pytest.mark.parametrize(
    ("feature", "values", "problem"),
    [
        (stored(2), [[1.0, 2.0], None], "numbers"),
        (stored(2), [[1.0, 2.0], [None, 1.0]], "numbers"),
        (stored(2), [[1.0, 2.0], [1.0]], "a list of 2 values"),
        (stored(2, torch.int64), [[1, 2], [0.5, 1]], "numbers that fit int64"),
        (stored(2, torch.int64), [[1, 2], [2**63, 1]], "numbers that fit int64"),
        (stored(2, torch.int64), [[1, 2], [1, 3]], "ids below 3 at 1"),
        (stored(2, torch.int64), [[1, 2], [1, -1]], "ids below 3 at 1"),
        (stored(2, torch.int64, narrow=torch.uint8), [[1, 2], [256, 1]], "numbers that fit uint8"),
        (stored(2, narrow=torch.uint8), [[1, 2], [0.5, 1]], "numbers that fit uint8"),
        (stored(2, narrow=torch.float16), [[1, 2], [1e5, 1]], "numbers that fit float16"),
    ],
)
def test_what_the_reader_refuses_in_a_vector_of_a_schema(
    tmp_path: Path, feature: Feature, values: list[Any], problem: str
) -> None:
    name = "discrete" if feature.dtype == torch.int64 else "continuous"
    ranker = open_schema(tmp_path, {name: feature}, {1: 3})
    assert ranker.encode({"x": values[:1]})[name].tolist() == values[:1]
    with pytest.raises(ValueError, match=f"row 1, column 'x': expected {re.escape(problem)}; found"):
        ranker.encode({"x": values})


@pytest.mark.parametrize(
    ("feature", "values", "problem"),
    [
        ({"kind": "number"}, [1, "2"], "numbers"),
        ({"kind": "number"}, [1, [2]], "numbers"),
        ({"kind": "number"}, [1, datetime.date(2026, 1, 1)], "numbers"),
        ({"kind": "numbers", "length": 2}, [[1, 2], [1]], "a list of 2 values"),
        ({"kind": "numbers", "length": 2}, [[1, 2], 3.0], "a list of 2 values"),
        ({"kind": "numbers", "length": 2}, [[1, 2], "ab"], "a list of 2 values"),
        ({"kind": "embedding", "length": 2}, [[1, 2], ["a", "b"]], "numbers"),
        ({"kind": "boolean"}, [1, 2], "true, false, 0, 1 or null"),
        ({"kind": "boolean"}, [True, "true"], "numbers"),
        ({"kind": "category", "num_values": 3}, [1, "a"], "integers"),
        ({"kind": "category", "hash_buckets": 3}, [1, 0.5], "strings, or integers from -2^63"),
        ({"kind": "category", "hash_buckets": 3}, [1, 2**63], "strings, or integers from -2^63"),
        ({"kind": "category", "hash_buckets": 3}, ["a", b"a"], "strings or integers"),
        ({"kind": "category", "hash_buckets": 3}, ["a", datetime.date(2026, 1, 1)], "strings or integers"),
        ({"kind": "categories", "hash_buckets": 3, "max_length": 1}, [["a"], [0.5, "a"]], "strings, or integers from"),
        ({"kind": "categories", "hash_buckets": 3}, [["a"], "a"], "a list of any number of values"),
        ({"kind": "timestamp"}, [datetime.date(2026, 1, 1), 3], "timestamps or dates"),
        ({"kind": "timestamp", "unit": "ms"}, [1, "2026-01-01"], "numbers"),
        ({"kind": "timestamp", "unit": "ms"}, [1, datetime.date(2026, 1, 1)], "numbers"),
    ],
)
def test_what_the_reader_refuses(tmp_path: Path, feature: dict[str, Any], values: list[Any], problem: str) -> None:
    ranker = open_features(tmp_path, FeatureEncoder.open(parse_features({"x": feature})))
    ranker.encode({"x": values[:1] * 2})
    with pytest.raises(ValueError, match=f"row 1, column 'x': expected {re.escape(problem)}.*; found"):
        ranker.encode({"x": values})


def test_a_table_of_strings_takes_no_integers(tmp_path: Path) -> None:
    encoder = FeatureEncoder.open(parse_features({"x": {"kind": "category", "hash_buckets": 3}}))
    encoder.check(pa.schema([("x", pa.string())]))
    ranker = open_features(tmp_path, encoder)
    ranker.encode({"x": ["1", None, float("nan")]})
    with pytest.raises(ValueError, match="row 1, column 'x': expected strings; found"):
        ranker.encode({"x": ["1", 1]})


def test_columns_that_are_absent_or_differ_in_length(tmp_path: Path) -> None:
    features = parse_features({"x": {"kind": "boolean"}, "t": {"kind": "timestamp", "age": {"before": "u"}}})
    ranker = open_features(tmp_path, FeatureEncoder.open(features))
    assert ranker.columns == ["x", "t", "u"]
    for columns in ({"x": [1], "t": [None]}, {"x": [1], "t": [None], "u": []}):
        with pytest.raises(ValueError, match="expected columns of one length, but theirs are"):
            ranker.encode(columns)
    assert ranker.encode({"x": [], "t": [], "u": []})["ids"].shape == (0, 2)


def test_times_as_text(tmp_path: Path) -> None:
    ranker = open_features(tmp_path, FeatureEncoder.open(parse_features({"t": {"kind": "timestamp"}})))
    texts = ["2026-11-28T08:30:00Z", "2026-11-28T10:30:00+02:00", "2026-11-28 08:30:00", "2026-11-28", None]
    assert ranker.encode({"t": texts})["ids"].tolist() == [[10, 7]] * 3 + [[2, 7], [0, 0]]
    with pytest.raises(ValueError, match="row 1, column 't': Invalid isoformat string"):
        ranker.encode({"t": ["2026-11-28", "soon"]})


@pytest.mark.parametrize("unit", ["D", "h", "m", "s", "ms", "us", "ns"])
def test_times_as_arrays_of_any_unit(tmp_path: Path, unit: str) -> None:
    ranker = open_features(tmp_path, FeatureEncoder.open(parse_features({"t": {"kind": "timestamp"}})))
    times = np.array(["2026-11-28", "NaT", "1969-12-31"], f"datetime64[{unit}]")
    assert ranker.encode({"t": times})["ids"].tolist() == [[2, 7], [0, 0], [2, 4]]


@pytest.mark.parametrize("zone", ["America/New_York", "Asia/Tokyo"])
def test_the_first_and_the_last_second(tmp_path: Path, zone: str) -> None:
    times = pa.array([-62_135_596_801, -62_135_596_800, 253_402_300_799, 253_402_300_800], pa.timestamp("s"))
    features = {"t": {"kind": "timestamp", "unit": "seconds", "time_zone": zone}}
    check(tmp_path, pa.table({"t": times.cast(pa.int64())}), features)
