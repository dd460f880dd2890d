"""Defines how a project encodes columns that are not plain numbers, such as strings and lists, as they are decoded."""

from collections.abc import Collection, Sequence
from typing import Any, Protocol

import pyarrow as pa
from numpy.typing import NDArray


class Encoder(Protocol):
    """Encodes columns of decoded row groups as arrays. Several threads may call encode() at the same time."""

    @property
    def columns(self) -> Collection[str]:
        """Names of the columns to read."""

    @property
    def bytes_per_row(self) -> int:
        """Bytes of an encoded row."""

    def check(self, schema: pa.Schema) -> Collection[str]:
        """Check the columns of a file.

        Returns:
          Names of the columns of strings that may be decoded as dictionaries, whose distinct values are then encoded
          once.

        Raises:
          ValueError: a column is missing or has a type that cannot be encoded; the message names it.
        """

    def encode(self, table: pa.Table, location: str) -> dict[str, NDArray[Any]]:
        """Return the encoded columns of a row group, each [rows, ...], with the same dtypes in all row groups.

        Args:
          table: the columns of one row group.
          location: file and row group, for messages.

        Raises:
          DataError: a value cannot be encoded; the message begins with `location`.
        """


class CombinedEncoder:
    """Encodes with several encoders, which return columns under different keys. It is an Encoder."""

    def __init__(self, encoders: Sequence[Encoder]) -> None:
        self._encoders = encoders

    @property
    def columns(self) -> list[str]:
        """Names of the columns to read."""
        return list(dict.fromkeys(name for encoder in self._encoders for name in encoder.columns))

    @property
    def bytes_per_row(self) -> int:
        """Bytes of an encoded row."""
        return sum(encoder.bytes_per_row for encoder in self._encoders)

    def check(self, schema: pa.Schema) -> list[str]:
        """Check the columns of a file; see Encoder.check()."""
        return list(dict.fromkeys(name for encoder in self._encoders for name in encoder.check(schema)))

    def encode(self, table: pa.Table, location: str) -> dict[str, NDArray[Any]]:
        """Return the encoded columns of all encoders; see Encoder.encode()."""
        encoded: dict[str, NDArray[Any]] = {}
        for encoder in self._encoders:
            encoded |= encoder.encode(table, location)
        return encoded
