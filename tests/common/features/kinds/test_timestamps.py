"""Encoded points in time equal rows that plain Python encodes one by one."""

import datetime
from typing import Any

import pyarrow as pa
import pytest

from tests.support.encoded_tables import check, encode

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
