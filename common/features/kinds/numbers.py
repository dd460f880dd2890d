"""Encodes features of numbers: numbers, vectors of them, booleans and embeddings."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from common.features.kinds.kind import (
    KindEncoder,
    Outputs,
    Places,
    chunks_of,
    column_vector_type,
    naming_column,
    wrong_type,
)
from common.features.numeric import NUMBERS, booleans, floats, is_number, value_type, vectors


@dataclass(frozen=True)
class NumberSlot:
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
    def of(cls, name: str, places: Places, missing: float | None, *, indicator: bool) -> Self:
        """Return the places of the number of this name."""
        # A feature may have the name of an indicator that this number doesn't have.
        column = places.binary[f"{name}.missing"] if indicator else None
        return cls(places.continuous[name], column, np.nan if missing is None else missing)

    def fill(self, numbers: NDArray[np.float32], rows: slice, out: Outputs) -> None:
        """Write numbers, [rows], and their indicator; NaN is missing."""
        missing = np.isnan(numbers)
        if missing.any():
            numbers = np.where(missing, np.float32(self.missing), numbers)
        out.continuous[rows, self.continuous] = numbers
        if self.indicator is not None:
            out.binary[rows, self.indicator] = missing


@dataclass(frozen=True)
class NumberEncoder(KindEncoder):
    """Encodes a column of numbers."""

    slot: NumberSlot

    def check(self, schema: pa.Schema) -> None:
        field = schema.field(self.column)
        if not is_number(value_type(field.type)):
            raise wrong_type(field, f"expected {NUMBERS}")

    def encode(self, table: pa.Table, out: Outputs) -> None:
        for rows, array in chunks_of(table, self.column):
            self.slot.fill(floats(array), rows, out)


def _check_vectors(field: pa.Field, length: int) -> None:
    if pa.types.is_null(field.type):
        return
    found = column_vector_type(field)
    if found is None or not is_number(found[0]):
        raise wrong_type(field, f"expected lists of {length} {NUMBERS}")
    if found[1] not in (None, length):
        raise ValueError(f"column '{field.name}': found vectors of {found[1]} values, expected {length}")


@dataclass(frozen=True)
class NumbersEncoder(KindEncoder):
    """Encodes vectors of numbers, each of which has its own places."""

    slots: list[NumberSlot]

    def check(self, schema: pa.Schema) -> None:
        _check_vectors(schema.field(self.column), len(self.slots))

    def encode(self, table: pa.Table, out: Outputs) -> None:
        for rows, array in chunks_of(table, self.column):
            with naming_column(self.column, rows):
                numbers = vectors(array, len(self.slots))
            for index, slot in enumerate(self.slots):
                slot.fill(numbers[:, index], rows, out)


@dataclass(frozen=True)
class EmbeddingEncoder(KindEncoder):
    """Encodes vectors that are parts of their own."""

    name: str
    length: int

    def check(self, schema: pa.Schema) -> None:
        _check_vectors(schema.field(self.column), self.length)

    def encode(self, table: pa.Table, out: Outputs) -> None:
        for rows, array in chunks_of(table, self.column):
            with naming_column(self.column, rows):
                numbers = vectors(array, self.length)
            out.embeddings[self.name][rows] = np.where(np.isnan(numbers), np.float32(0), numbers)


@dataclass(frozen=True)
class BooleanEncoder(KindEncoder):
    """Encodes booleans, and numbers that are 0 or 1."""

    binary: int
    missing: bool
    indicator: bool

    def check(self, schema: pa.Schema) -> None:
        field = schema.field(self.column)
        if not is_number(value_type(field.type)):
            raise wrong_type(field, "expected booleans, or numbers that are 0 or 1")

    def encode(self, table: pa.Table, out: Outputs) -> None:
        for rows, array in chunks_of(table, self.column):
            with naming_column(self.column, rows):
                values, missing = booleans(array)
            out.binary[rows, self.binary] = np.where(missing, np.uint8(self.missing), values)
            if self.indicator:
                out.binary[rows, self.binary + 1] = missing
