"""Turns Arrow arrays of categories into rows of embedding tables."""

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from common.features.config import FIRST_VALUE_ROW, MISSING_ROW, UNKNOWN_ROW, CategoriesFeature, CategoryFeature
from common.features.hashing import buckets, hash_integers, hash_strings
from common.features.layout import NO_ROW
from common.features.numeric import BadRowError, value_type
from common.features.vocabulary import Vocabulary

Rows = NDArray[np.int32]
"""Rows of a table: [values, hashes]."""

Category = Literal["strings", "integers", "nulls"]
"""Values of a column, as far as its type tells."""


def category_of(kind: pa.DataType) -> Category | None:
    """Return what the values of a type are, or None if they are no categories. Floats count as integers."""
    kind = value_type(kind)
    if is_text(kind):
        return "strings"
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
        return "integers"
    return "nulls" if pa.types.is_null(kind) else None


def is_text(kind: pa.DataType) -> bool:
    """Return whether an array of this type holds strings."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


class Encoding(Protocol):
    """Maps values to rows of a table."""

    @property
    def num_hashes(self) -> int:
        """Number of rows per value."""

    @property
    def accepts(self) -> Category | None:
        """The values that a column must have if it has any; None for strings or integers."""

    @property
    def reason(self) -> str:
        """Clause that says why, for messages."""

    def rows_of_strings(self, values: pa.Array) -> Rows:
        """Return the rows of strings; arbitrary rows for nulls. Takes string or large_string arrays."""

    def rows_of_integers(self, values: NDArray[np.int64], is_other: NDArray[np.bool_] | None) -> Rows:
        """Return the rows of integers.

        Args:
          values: [values].
          is_other: which values are no integers that fit int64, such as 0.5; None if there are none.

        Raises:
          BadRowError: such a value has no row.
        """


@dataclass(frozen=True)
class VocabularyEncoding:
    """Looks values up in a vocabulary."""

    vocabulary: Vocabulary
    num_hashes: int = 1

    @property
    def accepts(self) -> Category:
        return "strings" if self.vocabulary.has_strings else "integers"

    @property
    def reason(self) -> str:
        return f"because those are the values of the vocabulary {self.vocabulary.path}"

    def rows_of_strings(self, values: pa.Array) -> Rows:
        return self.vocabulary.rows(hash_strings(values))[:, None]

    def rows_of_integers(self, values: NDArray[np.int64], is_other: NDArray[np.bool_] | None) -> Rows:
        rows = self.vocabulary.rows(hash_integers(values))
        return _with_unknown(rows, is_other)[:, None]


@dataclass(frozen=True)
class NumberedEncoding:
    """Uses integers from 0 to num_values - 1 as they are."""

    num_values: int
    num_hashes: int = 1
    accepts: Category = "integers"
    reason: str = "because num_values is set"

    def rows_of_strings(self, values: pa.Array) -> Rows:
        return np.full((len(values), 1), UNKNOWN_ROW, np.int32)

    def rows_of_integers(self, values: NDArray[np.int64], is_other: NDArray[np.bool_] | None) -> Rows:
        known = (values >= 0) & (values < self.num_values)
        rows = np.where(known, values + FIRST_VALUE_ROW, UNKNOWN_ROW).astype(np.int32)
        return _with_unknown(rows, is_other)[:, None]


@dataclass
class HashEncoding:
    """Distributes values over buckets by their hashes."""

    num_buckets: int
    num_hashes: int
    accepts: Category | None = None
    reason: str = ""

    def rows_of_strings(self, values: pa.Array) -> Rows:
        hashes = [hash_strings(values)]
        if self.num_hashes == 2:
            hashes.append(hash_strings(values, hashes[0]))
        return self._rows(hashes)

    def rows_of_integers(self, values: NDArray[np.int64], is_other: NDArray[np.bool_] | None) -> Rows:
        if is_other is not None:
            row = int(np.argmax(is_other))
            raise BadRowError(
                row, "hash_buckets takes strings and integers from -2^63 to 2^63 - 1; use kind: number for others"
            )
        hashes = [hash_integers(values)]
        if self.num_hashes == 2:
            hashes.append(hash_integers(values, hashes[0]))
        return self._rows(hashes)

    def _rows(self, hashes: list[NDArray[np.uint64]]) -> Rows:
        rows = np.empty((len(hashes[0]), len(hashes)), np.int32)
        for index, each in enumerate(hashes):
            rows[:, index] = buckets(each, self.num_buckets) + FIRST_VALUE_ROW
        return rows


def _with_unknown(rows: NDArray[np.int32], is_other: NDArray[np.bool_] | None) -> NDArray[np.int32]:
    if is_other is not None:
        rows[is_other] = UNKNOWN_ROW
    return rows


def encoding_of(feature: CategoryFeature | CategoriesFeature, vocabulary: Vocabulary | None) -> Encoding:
    """Return the encoding of a feature. `vocabulary` is that of the feature, if it has one."""
    if vocabulary is not None:
        return VocabularyEncoding(vocabulary)
    if feature.num_values is not None:
        return NumberedEncoding(feature.num_values)
    return HashEncoding(feature.hash_buckets or 1, feature.num_hashes)


def rows_of(array: pa.Array, encoding: Encoding) -> Rows:
    """Return the rows of values.

    Args:
      array: categories (see category_of) that the encoding accepts; the strings of a dictionary are encoded once.
      encoding: the encoding of the values.

    Raises:
      BadRowError: a value has no row.
    """
    if pa.types.is_dictionary(array.type):
        if not is_text(array.type.value_type):
            return rows_of(array.dictionary_decode(), encoding)
        # A null is the value after the last one.
        distinct = np.concatenate([rows_of(array.dictionary, encoding), _missing(1, encoding)])
        places = array.indices.fill_null(len(array.dictionary)) if array.indices.null_count else array.indices
        rows_of_values: Rows = distinct.take(places.to_numpy(), axis=0)
        return rows_of_values
    if pa.types.is_null(array.type):
        return _missing(len(array), encoding)
    rows = np.empty((len(array), encoding.num_hashes), np.int32)
    for begin in range(0, len(array), _BLOCK):
        try:
            rows[begin : begin + _BLOCK] = _rows_of_block(array.slice(begin, _BLOCK), encoding)
        except BadRowError as error:
            raise BadRowError(begin + error.row, error.problem) from None
    return rows


# Number of values whose hashes stay in a core's cache until their rows are found, which saves a third of the time.
_BLOCK = 16_384


def _rows_of_block(array: pa.Array, encoding: Encoding) -> Rows:
    if is_text(array.type):
        if pa.types.is_string_view(array.type):
            array = array.cast(pa.large_string())
        rows = encoding.rows_of_strings(array)
        missing = array.is_null().to_numpy(zero_copy_only=False) if array.null_count else None
    else:
        values, missing, is_other = _integers(array)
        try:
            rows = encoding.rows_of_integers(values, is_other)
        except BadRowError as error:
            raise BadRowError(error.row, f"found {array[error.row].as_py()}, but {error.problem}") from None
    if missing is not None:
        rows[missing] = _missing(1, encoding)
    return rows


def _missing(number: int, encoding: Encoding) -> Rows:
    rows = np.full((number, encoding.num_hashes), NO_ROW, np.int32)
    rows[:, 0] = MISSING_ROW
    return rows


_Mask = NDArray[np.bool_] | None


def _integers(array: pa.Array) -> tuple[NDArray[np.int64], _Mask, _Mask]:
    """Return integers, booleans and floats as int64, which of them are missing, and which do not fit int64."""
    missing: _Mask = array.is_null().to_numpy(zero_copy_only=False) if array.null_count else None
    if pa.types.is_boolean(array.type):
        array = array.cast(pa.uint8())
    if pa.types.is_integer(array.type) and missing is not None:
        array = array.fill_null(0)
    numbers: NDArray[Any] = array.to_numpy(zero_copy_only=False)
    if numbers.dtype.kind == "f":
        numbers = numbers.astype(np.float64)
        missing = np.isnan(numbers)
        is_other = ~(missing | ((numbers == np.floor(numbers)) & (numbers >= -(2.0**63)) & (numbers < 2.0**63)))
        numbers = np.where(missing | is_other, 0, numbers)
    elif numbers.dtype == np.uint64:
        is_other = numbers >= np.uint64(2**63)
    else:
        return numbers.astype(np.int64, copy=False), missing, None
    return (
        numbers.astype(np.int64),
        missing if missing is not None and missing.any() else None,
        is_other if is_other.any() else None,
    )


def rows_of_lists(array: pa.Array, encoding: Encoding, max_length: int, out: NDArray[np.int32]) -> None:
    """Write the rows of the last values of lists to `out`, [rows, max_length * hashes].

    Args:
      array: lists of categories that the encoding accepts.
      encoding: the encoding of the values.
      max_length: maximum number of values to use.
      out: gets the rows of the values, then NO_ROW. A null list is one missing value.

    Raises:
      BadRowError: a value has no row.
    """
    out[:] = NO_ROW
    if pa.types.is_null(array.type):
        out[:, 0] = MISSING_ROW
        return
    begins, ends, values = _elements(array)
    missing = array.is_null().to_numpy(zero_copy_only=False) if array.null_count else None
    try:
        rows = rows_of(values, encoding)
    except BadRowError as error:
        raise BadRowError(int(np.searchsorted(ends, error.row, "right")), error.problem) from None
    lengths = np.minimum(ends - begins, max_length)
    if missing is not None:
        lengths[missing] = 0
    if lengths.sum() != len(rows):  # some values are cut, or hidden below a null
        firsts = ends - lengths
        skipped = np.cumsum(lengths) - lengths
        rows = rows.take(np.arange(int(lengths.sum())) + np.repeat(firsts - skipped, lengths), axis=0)
    values_of_rows = out.reshape(len(out), max_length, encoding.num_hashes)
    longest = int(lengths.max(initial=0))
    if (lengths == longest).all():  # a copy without a mask takes a fifth of the time
        values_of_rows[:, :longest] = rows.reshape(len(out), longest, encoding.num_hashes)
    else:
        values_of_rows[np.arange(max_length) < lengths[:, None]] = rows
    if missing is not None:
        out[missing, 0] = MISSING_ROW


def _elements(array: pa.Array) -> tuple[NDArray[np.int64], NDArray[np.int64], pa.Array]:
    """Return the first element of each list, the one after its last, and the elements of all lists."""
    if pa.types.is_fixed_size_list(array.type):
        size = array.type.list_size
        begins = np.arange(len(array), dtype=np.int64) * size
        return begins, begins + size, array.values.slice(array.offset * size, len(array) * size)
    offsets = array.offsets.to_numpy().astype(np.int64)
    first = int(offsets[0])
    values = array.values.slice(first, int(offsets[-1]) - first)
    offsets -= first
    return offsets[:-1], offsets[1:], values
