"""Turns Arrow arrays of numbers, vectors and booleans into numpy arrays, in which NaN stands for a missing number.

null, NaN and infinities are missing, as are numbers that are infinite in float32.
"""

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from common.reader.vectors import is_list, to_numpy, vector_format

NUMBERS = "integers, floats, decimals or booleans"
"""Types of a number, for messages."""


class BadRowError(ValueError):
    """A value that cannot be encoded."""

    def __init__(self, row: int, problem: str) -> None:
        """Remember the row of the array, counted from 0, and what was found and is allowed."""
        super().__init__(problem)
        self.row = row
        self.problem = problem


def is_number(kind: pa.DataType) -> bool:
    """Return whether an array of this type holds numbers or booleans, or only nulls."""
    return bool(
        pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_decimal(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_null(kind)
    )


def value_type(kind: pa.DataType) -> pa.DataType:
    """Return the type of the values of a dictionary, and any other type as it is."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def vector_type(field: pa.Field) -> tuple[pa.DataType, int | None] | None:
    """Return the type of the numbers of vectors, and their length if it is fixed; None for a column without vectors.

    Raises:
      ValueError: the metadata of a binary vector is incomplete or contradicts its type.
    """
    kind = field.type
    if pa.types.is_fixed_size_binary(kind):
        vectors = vector_format(field)
        return pa.from_numpy_dtype(vectors.dtype), vectors.width
    if not is_list(kind):
        return None
    return value_type(kind.value_type), kind.list_size if pa.types.is_fixed_size_list(kind) else None


def as_lists(array: pa.Array, field: pa.Field) -> pa.Array:
    """Return binary vectors as lists, without a copy of the numbers, and any other array as it is."""
    if not pa.types.is_fixed_size_binary(array.type):
        return array
    vectors = vector_format(field)
    numbers = to_numpy(array, vectors).reshape(-1)
    mask = array.is_null() if array.null_count else None
    return pa.FixedSizeListArray.from_arrays(pa.array(numbers), vectors.width, mask=mask)


def floats(array: pa.Array) -> NDArray[np.float32]:
    """Return numbers or booleans as float32, [rows], with NaN where a number is missing."""
    if pa.types.is_null(array.type):
        return np.full(len(array), np.nan, np.float32)
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if not pa.types.is_floating(array.type):
        # Small integers are exact in float64, and large ones are rounded alike with and without nulls.
        array = array.cast(pa.float64(), safe=False)
    numbers: NDArray[Any] = array.to_numpy(zero_copy_only=False)
    with np.errstate(over="ignore"):
        values = numbers.astype(np.float32, copy=False)
    infinite = np.isinf(values)
    return np.where(infinite, np.float32(np.nan), values) if infinite.any() else values


def vectors(array: pa.Array, length: int) -> NDArray[np.float32]:
    """Return lists of numbers as float32, [rows, length], with NaN where a number or the whole list is missing.

    Raises:
      BadRowError: a list has another length.
    """
    if pa.types.is_null(array.type):
        return np.full((len(array), length), np.nan, np.float32)
    if array.null_count == 0:
        return _vectors(array, length)
    filled = np.full((len(array), length), np.nan, np.float32)
    rows = np.flatnonzero(array.is_valid().to_numpy(zero_copy_only=False))
    try:
        filled[rows] = _vectors(array.drop_null(), length)
    except BadRowError as error:
        raise BadRowError(int(rows[error.row]), error.problem) from None
    return filled


def _vectors(array: pa.Array, length: int) -> NDArray[np.float32]:
    if not pa.types.is_fixed_size_list(array.type):
        lengths = np.diff(array.offsets.to_numpy())
        if (wrong := lengths != length).any():
            row = int(np.argmax(wrong))
            raise BadRowError(row, f"found a list of {lengths[row]} values, expected {length}")
    return floats(array.flatten()).reshape(-1, length)


def booleans(array: pa.Array) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Return booleans, or numbers that are 0 or 1, as uint8, [rows], and which of them are missing.

    Raises:
      BadRowError: a number is neither 0 nor 1.
    """
    numbers = floats(array)
    missing = np.isnan(numbers)
    good = (numbers == 0) | (numbers == 1) | missing
    if not good.all():
        row = int(np.argmin(good))
        raise BadRowError(row, f"found {array[row].as_py()}, but a boolean must be true, false, 0, 1 or null")
    return (numbers == 1).astype(np.uint8), missing
