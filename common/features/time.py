"""Turns Arrow arrays of timestamps, dates and integers into points in time, and those into local hours and days."""

import datetime
import functools
import zoneinfo
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from common.features.config import Unit
from common.features.numeric import value_type

_PER_SECOND: dict[Unit, int] = {"seconds": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_SECONDS: dict[Unit, int] = {"days": 86_400, "hours": 3_600, "minutes": 60}
_UNITS: dict[str, Unit] = {"s": "seconds", "ms": "ms", "us": "us", "ns": "ns"}
_DAY = 86_400
# The years 1 to 9999, which datetime can represent.
_FIRST, _LAST = -62_135_596_800, 253_402_300_799
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


class Times(NamedTuple):
    """Points in time.

    Attributes:
      seconds: whole seconds since 1970-01-01 UTC, rounded down, [rows]; 0 if missing.
      fractions: fractions of a second after them, at least 0 and less than 1, [rows].
      missing: whether the point is null, or outside of the years 1 to 9999.
    """

    seconds: NDArray[np.int64]
    fractions: NDArray[np.float64]
    missing: NDArray[np.bool_]


def time_problem(kind: pa.DataType, unit: Unit | None, key: str) -> str | None:
    """Return what is expected instead of this type; None if times() takes it.

    Args:
      kind: type of the column.
      unit: unit of integers, as configured.
      key: key of that unit in the configuration of the feature.
    """
    kind = value_type(kind)
    if pa.types.is_null(kind):
        return None
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return None if unit is None else f"whose unit is known, but {key} is {unit}. Remove {key}"
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        return "expected timestamps, dates, or integers with a unit"
    return f"expected timestamps or dates, because {key} is null. Set {key} for integers" if unit is None else None


def times(array: pa.Array, unit: Unit | None) -> Times:
    """Return the points in time of an array that time_problem() accepts. Floats count as integers with a fraction."""
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    kind = array.type
    if pa.types.is_null(kind):
        return Times(np.zeros(len(array), np.int64), np.zeros(len(array)), np.ones(len(array), bool))
    if pa.types.is_timestamp(kind):
        array, unit = array.cast(pa.int64()), _UNITS[kind.unit]
    elif pa.types.is_date(kind):
        is_days = pa.types.is_date32(kind)
        array, unit = array.cast(pa.int32() if is_days else pa.int64()), "days" if is_days else "ms"
    missing = array.is_null().to_numpy(zero_copy_only=False)
    if array.null_count and pa.types.is_integer(array.type):
        array = array.fill_null(0)
    numbers: NDArray[Any] = array.to_numpy(zero_copy_only=False)
    per_second, seconds_per_unit = _PER_SECOND.get(unit or "seconds", 1), _SECONDS.get(unit or "seconds", 1)
    # Limits in the unit of the column, so that nothing overflows.
    low, high = _FIRST * per_second // seconds_per_unit, (_LAST + 1) * per_second // seconds_per_unit
    missing = missing | ~((numbers >= low) & (numbers < high))
    if numbers.dtype.kind == "f":
        numbers = np.where(missing, 0, numbers).astype(np.float64) * seconds_per_unit / per_second
        seconds = np.floor(numbers)
        return Times(seconds.astype(np.int64), numbers - seconds, missing)
    numbers = np.where(missing, 0, numbers).astype(np.int64)
    seconds, rest = np.divmod(numbers, per_second) if per_second > 1 else (numbers * seconds_per_unit, 0)
    return Times(seconds, np.broadcast_to(np.asarray(rest / per_second, np.float64), seconds.shape), missing)


def seconds_between(first: Times, second: Times) -> NDArray[np.float64]:
    """Return the seconds from one point in time to another, [rows]; NaN if one of them is missing."""
    seconds = (second.seconds - first.seconds) + (second.fractions - first.fractions)
    return np.where(first.missing | second.missing, np.nan, seconds)


def seconds_of_unit(unit: Unit) -> float:
    """Return the number of seconds in a unit."""
    return float(_SECONDS.get(unit, 1)) / _PER_SECOND.get(unit, 1)


class Zone:
    """A time zone. Several threads may use it at the same time.

    Offsets come from Python's zoneinfo, which finds the tzdata package on machines without time zones of their own.
    """

    def __init__(self, name: str) -> None:
        """Load a time zone by its name, such as Europe/Berlin, which exists."""
        self._zone = zoneinfo.ZoneInfo(name)
        self._year = functools.lru_cache(maxsize=None)(self._changes)

    def local_seconds(self, times: Times) -> NDArray[np.int64]:
        """Return seconds since 1970-01-01 00:00 in local time, [rows]; UTC if missing."""
        years = times.seconds.astype("datetime64[s]").astype("datetime64[Y]").astype(np.int64)
        begins, offsets = zip(*(self._year(int(year) + 1970) for year in np.unique(years)), strict=True)
        at, offset = np.concatenate(begins), np.concatenate(offsets)
        local: NDArray[np.int64] = times.seconds + offset[np.searchsorted(at, times.seconds, "right") - 1]
        return local

    def _changes(self, year: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return when the offset from UTC changes in a year, of which the first is its begin, and the offsets."""
        begin = int((datetime.datetime(year, 1, 1, tzinfo=datetime.UTC) - _EPOCH).total_seconds())
        days = range(begin, begin + 367 * _DAY, _DAY)
        at, offsets = [begin], [self._offset(begin)]
        for day in days[1:]:
            if self._offset(day) != offsets[-1]:
                # Bisect the day before: the offset changes in it.
                low, high = day - _DAY, day
                while high - low > 1:
                    middle = (low + high) // 2
                    low, high = (low, middle) if self._offset(middle) != offsets[-1] else (middle, high)
                at.append(high)
                offsets.append(self._offset(day))
        return np.array(at), np.array(offsets)

    def _offset(self, seconds: int) -> int:
        # The first and the last day of all would leave the range of datetime.
        seconds = min(max(seconds, _FIRST + _DAY), _LAST - _DAY)
        moment = _EPOCH + datetime.timedelta(seconds=seconds)
        offset = moment.astimezone(self._zone).utcoffset()
        return round(offset.total_seconds()) if offset is not None else 0
