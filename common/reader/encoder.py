"""Defines how a project encodes columns that are not plain numbers, such as strings and lists, as they are decoded."""

from collections.abc import Collection
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
          Names of the columns to decode as dictionaries, whose distinct values are then encoded once.

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
