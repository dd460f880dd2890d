"""score.py encodes columns exactly as the reader does, and refuses what the reader refuses."""

import datetime
import decimal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from projects.home.recap.export import score
from tests.support.encoded_tables import vocabulary
from tests.support.exported_encoder import check

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
    xxhash = pytest.importorskip("xxhash")
    rng = np.random.default_rng(0)
    for length in [*range(70), 1000]:
        data, seed = rng.bytes(length), int(rng.integers(2**64 - 1, dtype=np.uint64))
        assert score.python_xxh64(data, seed) == xxhash.xxh64_intdigest(data, seed)
