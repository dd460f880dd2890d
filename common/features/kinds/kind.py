"""Defines the encoder of a feature, which fills its part of the arrays of a layout, and what all kinds share."""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from common.features.layout import FeatureLayout, Lookup
from common.features.numeric import BadRowError, as_lists, vector_type


@dataclass(frozen=True)
class Outputs:
    """Arrays of a row group that features fill, each [rows, ...]."""

    continuous: NDArray[np.float32]
    binary: NDArray[np.uint8]
    ids: NDArray[np.int32]
    embeddings: Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Places:
    """Locates the values of a layout in the arrays.

    Attributes:
      continuous: column of each value of continuous, by its name.
      binary: column of each value of binary, by its name.
      lookups: the ids of each feature, by its name or that of its part.
    """

    continuous: Mapping[str, int]
    binary: Mapping[str, int]
    lookups: Mapping[str, Lookup]

    @classmethod
    def of(cls, layout: FeatureLayout) -> Self:
        """Return the places of a layout."""
        return cls(
            {name: column for column, name in enumerate(layout.continuous)},
            {name: column for column, name in enumerate(layout.binary)},
            {lookup.feature: lookup for lookup in layout.lookups},
        )


class BadValueError(ValueError):
    """A value that cannot be encoded, in a row of a row group."""

    def __init__(self, column: str, row: int, problem: str) -> None:
        super().__init__(problem)
        self.column, self.row, self.problem = column, row, problem


@dataclass(frozen=True)
class KindEncoder(ABC):
    """Encodes a feature.

    Attributes:
      column: the column of the feature.
    """

    column: str

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns to read."""
        return (self.column,)

    @abstractmethod
    def check(self, schema: pa.Schema) -> None:
        """Raise ValueError with the column, what was found and what is expected, if it cannot be encoded."""

    @abstractmethod
    def encode(self, table: pa.Table, out: Outputs) -> None:
        """Fill the feature's part of the arrays of a row group. Raises BadValueError."""


def chunks_of(table: pa.Table, name: str) -> Iterator[tuple[slice, pa.Array]]:
    """Yield the rows and the values of each chunk of a column. Binary vectors become lists."""
    begin, field = 0, table.schema.field(name)
    for chunk in table.column(name).chunks:
        yield slice(begin, begin + len(chunk)), as_lists(chunk, field)
        begin += len(chunk)


@contextlib.contextmanager
def naming_column(column: str, rows: slice) -> Iterator[None]:
    """Add the column, and the rows before its chunk, to a BadRowError."""
    try:
        yield
    except BadRowError as error:
        raise BadValueError(column, rows.start + error.row, error.problem) from None


def wrong_type(field: pa.Field, expected: str) -> ValueError:
    """Return the error about a column of a type that cannot be encoded."""
    return ValueError(f"column '{field.name}': found {field.type}, {expected}")


def column_vector_type(field: pa.Field) -> tuple[pa.DataType, int | None] | None:
    """Return vector_type() of a column. Its ValueError names the column."""
    try:
        return vector_type(field)
    except ValueError as error:
        raise ValueError(f"column '{field.name}': {error}") from None
