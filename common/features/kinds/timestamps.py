"""Encodes points in time."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import pyarrow as pa

from common.features.config import FIRST_VALUE_ROW, MISSING_ROW, Age, Unit
from common.features.kinds.kind import KindEncoder, Outputs, Places, wrong_type
from common.features.kinds.numbers import NumberSlot
from common.features.layout import Lookup
from common.features.time import Times, Zone, seconds_between, seconds_of_unit, time_problem, times


@dataclass(frozen=True)
class AgeEncoder:
    """Encodes the time from a point in time to the one in `column`."""

    column: str
    column_unit: Unit | None
    seconds: float
    slot: NumberSlot

    @classmethod
    def of(cls, age: Age, name: str, places: Places) -> Self:
        """Return the encoder of the age of this name."""
        slot = NumberSlot.of(name, places, age.missing, indicator=age.indicator)
        return cls(age.before, age.before_unit, seconds_of_unit(age.unit), slot)

    def encode(self, own: Times, table: pa.Table, out: Outputs) -> None:
        """Fill the age's part of the arrays of a row group, whose points in time are `own`."""
        ages = seconds_between(own, _times(table, self.column, self.column_unit)) / self.seconds
        self.slot.fill(ages.astype(np.float32), slice(0, len(ages)), out)


@dataclass(frozen=True)
class TimestampEncoder(KindEncoder):
    """Encodes points in time as hours, days and ages."""

    unit: Unit | None
    zone: Zone
    hour: Lookup | None
    day: Lookup | None
    age: AgeEncoder | None

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column,) if self.age is None else (self.column, self.age.column)

    def check(self, schema: pa.Schema) -> None:
        units = [(self.column, self.unit, "unit")]
        if self.age is not None:
            units.append((self.age.column, self.age.column_unit, "age.before_unit"))
        for name, unit, key in units:
            field = schema.field(name)
            if problem := time_problem(field.type, unit, key):
                raise wrong_type(field, problem)

    def encode(self, table: pa.Table, out: Outputs) -> None:
        own = _times(table, self.column, self.unit)
        if self.hour or self.day:
            local = self.zone.local_seconds(own)
            days = local // 86_400
            # 1970-01-01 was a Thursday, and Monday is day 0.
            for lookup, values in ((self.hour, (local - days * 86_400) // 3_600), (self.day, (days + 3) % 7)):
                if lookup is not None:
                    out.ids[:, lookup.begin] = np.where(own.missing, MISSING_ROW, values + FIRST_VALUE_ROW)
        if self.age is not None:
            self.age.encode(own, table, out)


def _times(table: pa.Table, column: str, unit: Unit | None) -> Times:
    parts = [times(chunk, unit) for chunk in table.column(column).chunks]
    return parts[0] if len(parts) == 1 else Times(*map(np.concatenate, zip(*parts, strict=True)))
