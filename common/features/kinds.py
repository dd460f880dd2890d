"""Encodes the columns of one feature into its part of the arrays of a layout, for each kind of feature."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from common.features.category import Encoding, HashEncoding, category_of, rows_of, rows_of_lists
from common.features.config import (
    FIRST_VALUE_ROW,
    MISSING_ROW,
    Age,
    BooleanFeature,
    CategoryFeature,
    EmbeddingFeature,
    Feature,
    NumberFeature,
    NumbersFeature,
    TimestampFeature,
    Unit,
)
from common.features.layout import FeatureLayout, Lookup
from common.features.numeric import (
    NUMBERS,
    BadRowError,
    as_lists,
    booleans,
    floats,
    is_number,
    value_type,
    vector_type,
    vectors,
)
from common.features.time import Times, Zone, seconds_between, seconds_of_unit, time_problem, times


@dataclass(frozen=True)
class Outputs:
    """Arrays of a row group that features fill, each [rows, ...]."""

    continuous: NDArray[np.float32]
    binary: NDArray[np.uint8]
    ids: NDArray[np.int32]
    embeddings: Mapping[str, NDArray[np.float32]]


class BadValueError(ValueError):
    """A value that cannot be encoded, in a row of a row group."""

    def __init__(self, column: str, row: int, problem: str) -> None:
        super().__init__(problem)
        self.column, self.row, self.problem = column, row, problem


class KindEncoder(Protocol):
    """Encodes a feature."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns to read."""

    def check(self, schema: pa.Schema) -> None:
        """Raise ValueError with the column, what was found and what is expected, if it cannot be encoded."""

    def encode(self, table: pa.Table, out: Outputs) -> None:
        """Fill the feature's part of the arrays of a row group. Raises BadValueError."""


def kind_encoder(name: str, feature: Feature, layout: FeatureLayout, encodings: Mapping[str, Encoding]) -> KindEncoder:
    """Return the encoder of a feature.

    Args:
      name: name of the feature.
      feature: its configuration.
      layout: layout of the arrays.
      encodings: encodings of categories, by table.
    """
    column = feature.column or name
    if isinstance(feature, NumberFeature):
        return _Number(column, _NumberSlot.of(name, layout, feature.missing))
    if isinstance(feature, NumbersFeature):
        length = feature.length or 0
        missing = feature.missing if isinstance(feature.missing, list) else [feature.missing] * length
        slots = [_NumberSlot.of(f"{name}[{index}]", layout, missing[index]) for index in range(length)]
        return _Numbers(column, slots)
    if isinstance(feature, BooleanFeature):
        return _Boolean(column, layout.binary.index(name), feature.missing, feature.indicator)
    if isinstance(feature, EmbeddingFeature):
        return _Embedding(column, name, feature.length or 0)
    lookups = {lookup.feature: lookup for lookup in layout.lookups}
    if isinstance(feature, TimestampFeature):
        age = None if feature.age is None else _Age.of(feature.age, f"{name}.age", layout)
        hour, day = lookups.get(f"{name}.hour_of_day"), lookups.get(f"{name}.day_of_week")
        return _Timestamp(column, feature.unit, Zone(feature.time_zone), hour, day, age)
    lookup = lookups[name]
    if isinstance(feature, CategoryFeature):
        return _Category(column, lookup, encodings[lookup.table])
    return _Categories(column, lookup, encodings[lookup.table])


def _chunks(table: pa.Table, name: str) -> Iterator[tuple[slice, pa.Array]]:
    """Yield the rows and the values of each chunk of a column. Binary vectors become lists."""
    begin, field = 0, table.schema.field(name)
    for chunk in table.column(name).chunks:
        yield slice(begin, begin + len(chunk)), as_lists(chunk, field)
        begin += len(chunk)


@contextlib.contextmanager
def _naming(column: str, rows: slice) -> Iterator[None]:
    """Add the column, and the rows before its chunk, to a BadRowError."""
    try:
        yield
    except BadRowError as error:
        raise BadValueError(column, rows.start + error.row, error.problem) from None


def _wrong(field: pa.Field, expected: str) -> ValueError:
    return ValueError(f"column '{field.name}': found {field.type}, {expected}")


@dataclass(frozen=True)
class _NumberSlot:
    """The places of a number.

    Attributes:
      continuous: its column in continuous.
      indicator: the column of its indicator in binary; None without one.
      missing: replaces a missing number.
    """

    continuous: int
    indicator: int | None
    missing: float

    @classmethod
    def of(cls, name: str, layout: FeatureLayout, missing: float | None) -> Self:
        indicator = f"{name}.missing"
        return cls(
            layout.continuous.index(name),
            layout.binary.index(indicator) if indicator in layout.binary else None,
            np.nan if missing is None else missing,
        )

    def fill(self, numbers: NDArray[np.float32], rows: slice, out: Outputs) -> None:
        missing = np.isnan(numbers)
        if missing.any():
            numbers = np.where(missing, np.float32(self.missing), numbers)
        out.continuous[rows, self.continuous] = numbers
        if self.indicator is not None:
            out.binary[rows, self.indicator] = missing


@dataclass(frozen=True)
class _Number:
    column: str
    slot: _NumberSlot

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column,)

    def check(self, schema: pa.Schema) -> None:
        field = schema.field(self.column)
        if not is_number(value_type(field.type)):
            raise _wrong(field, f"expected {NUMBERS}")

    def encode(self, table: pa.Table, out: Outputs) -> None:
        for rows, array in _chunks(table, self.column):
            self.slot.fill(floats(array), rows, out)


def _vector_type(field: pa.Field) -> tuple[pa.DataType, int | None] | None:
    try:
        return vector_type(field)
    except ValueError as error:
        raise ValueError(f"column '{field.name}': {error}") from None


def _check_vectors(field: pa.Field, length: int) -> None:
    if pa.types.is_null(field.type):
        return
    found = _vector_type(field)
    if found is None or not is_number(found[0]):
        raise _wrong(field, f"expected lists of {length} {NUMBERS}")
    if found[1] not in (None, length):
        raise ValueError(f"column '{field.name}': found vectors of {found[1]} values, expected {length}")


@dataclass(frozen=True)
class _Numbers:
    column: str
    slots: list[_NumberSlot]

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column,)

    def check(self, schema: pa.Schema) -> None:
        _check_vectors(schema.field(self.column), len(self.slots))

    def encode(self, table: pa.Table, out: Outputs) -> None:
        for rows, array in _chunks(table, self.column):
            with _naming(self.column, rows):
                numbers = vectors(array, len(self.slots))
            for index, slot in enumerate(self.slots):
                slot.fill(numbers[:, index], rows, out)


@dataclass(frozen=True)
class _Embedding:
    column: str
    name: str
    length: int

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column,)

    def check(self, schema: pa.Schema) -> None:
        _check_vectors(schema.field(self.column), self.length)

    def encode(self, table: pa.Table, out: Outputs) -> None:
        for rows, array in _chunks(table, self.column):
            with _naming(self.column, rows):
                numbers = vectors(array, self.length)
            out.embeddings[self.name][rows] = np.where(np.isnan(numbers), np.float32(0), numbers)


@dataclass(frozen=True)
class _Boolean:
    column: str
    binary: int
    missing: bool
    indicator: bool

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column,)

    def check(self, schema: pa.Schema) -> None:
        field = schema.field(self.column)
        if not is_number(value_type(field.type)):
            raise _wrong(field, "expected booleans, or numbers that are 0 or 1")

    def encode(self, table: pa.Table, out: Outputs) -> None:
        for rows, array in _chunks(table, self.column):
            with _naming(self.column, rows):
                values, missing = booleans(array)
            out.binary[rows, self.binary] = np.where(missing, np.uint8(self.missing), values)
            if self.indicator:
                out.binary[rows, self.binary + 1] = missing


def _check_category(field: pa.Field, kind: pa.DataType, encoding: Encoding, *, lists: bool) -> None:
    before = "lists of " if lists else ""
    category = category_of(kind)
    if category is None:
        raise _wrong(field, f"expected {before}strings or integers")
    if category == "nulls":
        return
    if encoding.accepts not in (None, category):
        raise _wrong(field, f"expected {before}{encoding.accepts}, {encoding.reason}")
    if isinstance(encoding, HashEncoding):
        # Strings and integers have different hashes, so that all columns of a table, in all files, need one of them.
        encoding.accepts = category
        encoding.reason = f"because other values of the same table are {category}, first in column '{field.name}'"


@dataclass(frozen=True)
class _Category:
    column: str
    lookup: Lookup
    encoding: Encoding

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column,)

    def check(self, schema: pa.Schema) -> None:
        field = schema.field(self.column)
        _check_category(field, field.type, self.encoding, lists=False)

    def encode(self, table: pa.Table, out: Outputs) -> None:
        for rows, array in _chunks(table, self.column):
            with _naming(self.column, rows):
                out.ids[rows, self.lookup.begin : self.lookup.end] = rows_of(array, self.encoding)


@dataclass(frozen=True)
class _Categories:
    column: str
    lookup: Lookup
    encoding: Encoding

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column,)

    def check(self, schema: pa.Schema) -> None:
        field = schema.field(self.column)
        if pa.types.is_null(field.type):
            return
        if (found := _vector_type(field)) is None:
            raise _wrong(field, "expected lists of strings or integers")
        _check_category(field, found[0], self.encoding, lists=True)

    def encode(self, table: pa.Table, out: Outputs) -> None:
        for rows, array in _chunks(table, self.column):
            with _naming(self.column, rows):
                ids = out.ids[rows, self.lookup.begin : self.lookup.end]
                rows_of_lists(array, self.encoding, self.lookup.length, ids)


@dataclass(frozen=True)
class _Age:
    column: str
    column_unit: Unit | None
    seconds: float
    slot: _NumberSlot

    @classmethod
    def of(cls, age: Age, name: str, layout: FeatureLayout) -> Self:
        return cls(age.before, age.before_unit, seconds_of_unit(age.unit), _NumberSlot.of(name, layout, age.missing))

    def encode(self, own: Times, table: pa.Table, out: Outputs) -> None:
        ages = seconds_between(own, _times(table, self.column, self.column_unit)) / self.seconds
        self.slot.fill(ages.astype(np.float32), slice(0, len(ages)), out)


@dataclass(frozen=True)
class _Timestamp:
    column: str
    unit: Unit | None
    zone: Zone
    hour: Lookup | None
    day: Lookup | None
    age: _Age | None

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
                raise _wrong(field, problem)

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
