"""Encodes the column whose values are groups of examples, such as users, for metrics within groups."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from common.features.category import category_of, is_text
from common.features.hashing import hash_integers, hash_strings
from common.reader.files import DataError
from common.reader.parquet_file import no_column

GROUPS = "groups"
"""Key of the encoded column in a row group."""

NO_GROUP = -(2**63)
"""Group of a row whose value is null."""


class GroupEncoder:
    """Encodes a column as hashes. It implements common.reader.encoder.Encoder.

    Two integers never have the same hash, and two strings have it with a probability of 2^-64.
    """

    def __init__(self, column: str, key_path: str) -> None:
        """Prepare to encode.

        Args:
          column: name of the column.
          key_path: path of the key that names it in the configuration, for messages.
        """
        self.columns = (column,)
        self.bytes_per_row = 8
        self._column = column
        self._key_path = key_path

    def check(self, schema: pa.Schema) -> list[str]:
        """Check the column of a file; see Encoder.check()."""
        if schema.get_field_index(self._column) < 0:
            raise ValueError(no_column(self._column, schema.names, f", but {self._key_path} names it"))
        kind = schema.field(self._column).type
        category = category_of(kind)
        if category is None:
            raise ValueError(
                f"column '{self._column}': found {kind}, but {self._key_path} needs a column of strings or integers"
            )
        return [self._column] if category == "strings" else []

    def encode(self, table: pa.Table, location: str) -> dict[str, NDArray[Any]]:
        """Return GROUPS, int64 [rows]; see Encoder.encode()."""
        try:
            groups = [_groups(chunk) for chunk in table.column(self._column).chunks]
        except pa.ArrowInvalid as error:
            raise DataError(
                f"{location}: column '{self._column}': {error}, but {self._key_path} needs whole numbers from -2^63 to "
                "2^63 - 1"
            ) from None
        return {GROUPS: np.concatenate([np.empty(0, np.int64), *groups])}


def _groups(array: pa.Array) -> NDArray[np.int64]:
    if pa.types.is_dictionary(array.type) and not array.dictionary.null_count:
        distinct = np.append(_groups(array.dictionary), NO_GROUP)
        places = array.indices.cast(pa.int64()).fill_null(len(array.dictionary))
        of_rows: NDArray[np.int64] = distinct.take(places.to_numpy(zero_copy_only=False))
        return of_rows
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if is_text(array.type):
        groups = hash_strings(array.cast(pa.large_string())).view(np.int64)
    else:
        if pa.types.is_floating(array.type):  # integers with nulls become floats with NaN in pandas
            array = pc.if_else(pc.is_nan(array), None, array)
        array = array.cast(pa.int64())
        groups = hash_integers(array.fill_null(0).to_numpy(zero_copy_only=False)).view(np.int64)
    if array.null_count:
        groups = np.where(array.is_null().to_numpy(zero_copy_only=False), NO_GROUP, groups)
    return groups
