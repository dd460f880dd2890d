"""Describes a column as the reader delivers it, and turns its Arrow data into checked numpy arrays.

Values are not converted here. Converting the rows of a batch (reader.py) is cheaper than converting whole row groups
when they are decoded.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from common.reader.files import DataError
from common.reader.narrow import first_misfit
from common.reader.vectors import is_list, to_numpy, vector_format

Values = Literal["label", "weight", "probability"]


@dataclass(frozen=True, eq=False)
class Column:
    """A column as the reader delivers it.

    A plain column has one value per row and is [rows] in a batch. A column of vectors has `width` values per row and is
    [rows, num_kept] in a batch.

    Attributes:
      name: name of the column in the files; dots are part of the name.
      dtype: dtype in a batch; an integer dtype requires a column of integers.
      width: values per row in the files of a column of vectors; None for a plain column.
      keep: number of leading values of each vector to keep in a batch, or the positions of the values to keep; None
        keeps all.
      position: position of the only value to read from each vector; the result is a plain column. None reads all.
      narrow: narrower dtype in a batch, used instead of `dtype`; a value that it cannot represent (narrow.py) is an
        error. None uses `dtype`.
      values: kind of values, which are checked: a "label" is 0 or 1, a "weight" is finite and >= 0, a "probability" is
        between 0 and 1. None allows any value.
      booleans: whether booleans are accepted as the integers 0 and 1.
      num_ids: positions of a vector that hold ids, each with a number n; ids must satisfy 0 <= id < n. None if no
        position holds ids.
    """

    name: str
    dtype: torch.dtype = torch.float32
    width: int | None = None
    keep: int | NDArray[np.intp] | None = None
    position: int | None = None
    narrow: torch.dtype | None = None
    values: Values | None = None
    booleans: bool = True
    num_ids: Mapping[int, int] | None = None

    @property
    def num_read(self) -> int | None:
        """Number of values read per row; None for one value per row."""
        return self.width if self.position is None else None

    @property
    def num_kept(self) -> int | None:
        """Number of values per row in a batch; None for one value per row."""
        if self.keep is None:
            return self.num_read
        return self.keep if isinstance(self.keep, int) else len(self.keep)

    @property
    def batch_dtype(self) -> torch.dtype:
        """Dtype of the column in a batch."""
        return self.dtype if self.narrow is None else self.narrow


# A larger weight becomes infinite in float32.
_MAX_WEIGHT = np.finfo(np.float32).max


def stored_dtype(field: pa.Field, column: Column) -> np.dtype[Any]:
    """Return the dtype of the numbers in a column of the files.

    Raises:
      ValueError: the column cannot be delivered as `column`; the message says what was found and what is expected.
    """
    value_type, width = _value_type_and_width(field)
    if column.width is None and width is not None:
        raise ValueError(f"found {field.type}, expected one value per row")
    if column.width is not None:
        if width is None:
            raise ValueError(f"found {field.type}, expected lists of {column.width} values")
        if width not in (_ANY_WIDTH, column.width):
            kind = "lists" if is_list(field.type) else "binary vectors"
            raise ValueError(f"found {kind} of {width} values, expected {column.width}")
    if pa.types.is_integer(value_type) or (column.booleans and pa.types.is_boolean(value_type)):
        return _numpy_dtype_of(value_type)
    if not column.dtype.is_floating_point:
        raise ValueError(f"found {_describe_type(field)}, expected integers")
    if not pa.types.is_floating(value_type):
        raise ValueError(f"found {field.type}, expected numbers")
    return _numpy_dtype_of(value_type)


_ANY_WIDTH = 0


def _numpy_dtype_of(kind: pa.DataType) -> np.dtype[Any]:
    dtype: np.dtype[Any] = np.dtype(kind.to_pandas_dtype())
    return dtype


def _value_type_and_width(field: pa.Field) -> tuple[pa.DataType, int | None]:
    """Return the type of the numbers, and the numbers per row.

    The width is None for a plain column, and _ANY_WIDTH if it may differ from row to row.
    """
    kind = field.type
    if pa.types.is_fixed_size_binary(kind):
        vectors = vector_format(field)
        return pa.from_numpy_dtype(vectors.dtype), vectors.width
    if pa.types.is_fixed_size_list(kind):
        return kind.value_type, kind.list_size
    return (kind.value_type, _ANY_WIDTH) if is_list(kind) else (kind, None)


def _describe_type(field: pa.Field) -> str:
    if not pa.types.is_fixed_size_binary(field.type):
        return str(field.type)
    vectors = vector_format(field)
    return f"vectors of {vectors.width} {vectors.dtype.name}"


def checked_values(chunks: pa.ChunkedArray, field: pa.Field, column: Column, location: str) -> NDArray[Any]:
    """Return the column of one row group with its stored dtype, [rows] or [rows, num_read].

    The array is read-only if that saves a copy.

    Raises:
      DataError: a value is null or not allowed in the column, or a list has a different width; the message begins
        with `location` and the row.
    """
    array = chunks.combine_chunks() if chunks.num_chunks != 1 else chunks.chunk(0)
    if array.null_count:
        row = int(np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False))[0])
        raise DataError(bad_value(location, column, row, "found null, but every row needs a value"))
    if pa.types.is_fixed_size_binary(array.type):
        numbers = to_numpy(array, vector_format(field))
    else:
        numbers = _numbers(array, column, location)
    if column.position is not None:
        numbers = numbers[:, column.position]
    _check_values(numbers, column, location)
    _check_ids(numbers, column, location)
    _check_narrow(numbers, column, location)
    return numbers


def _numbers(array: pa.Array, column: Column, location: str) -> NDArray[Any]:
    values = array
    if column.width is not None:
        if not pa.types.is_fixed_size_list(array.type):
            lengths = np.diff(array.offsets.to_numpy())
            if (lengths != column.width).any():
                row = int(np.flatnonzero(lengths != column.width)[0])
                problem = f"found a list of {lengths[row]} values, expected {column.width}"
                raise DataError(bad_value(location, column, row, problem))
        values = array.flatten()
    if values.null_count:
        row = int(np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))[0]) // (column.width or 1)
        raise DataError(bad_value(location, column, row, "found null in a list, but every value is required"))
    numbers: NDArray[Any] = values.to_numpy(zero_copy_only=False)
    return numbers if column.width is None else numbers.reshape(-1, column.width)


def _check_values(numbers: NDArray[Any], column: Column, location: str) -> None:
    if column.values == "label":
        good, allowed = (numbers == 0) | (numbers == 1), "a label must be 0 or 1"
    elif column.values == "weight":
        good, allowed = (numbers >= 0) & (numbers <= _MAX_WEIGHT), "a weight must be at least 0 and finite in float32"
    elif column.values == "probability":
        good, allowed = (numbers >= 0) & (numbers <= 1), "a probability must be between 0 and 1"
    elif not column.dtype.is_floating_point and not np.can_cast(numbers.dtype, numpy_dtype(column.dtype)):
        limits = torch.iinfo(column.dtype)
        good = (numbers >= limits.min) & (numbers <= limits.max)
        allowed = f"values must be between {limits.min} and {limits.max}"
    else:
        return
    if not good.all():
        index = tuple(np.argwhere(~good)[0])
        raise DataError(bad_value(location, column, int(index[0]), f"found {numbers[index]}, but {allowed}"))


def _check_ids(numbers: NDArray[Any], column: Column, location: str) -> None:
    for position, num_ids in (column.num_ids or {}).items():
        ids = numbers[:, position]
        good = (ids >= 0) & (ids < num_ids)
        if not good.all():
            row = int(np.flatnonzero(~good)[0])
            problem = f"found {ids[row]} at position {position}, but ids must be between 0 and {num_ids - 1}"
            raise DataError(bad_value(location, column, row, problem))


def _check_narrow(numbers: NDArray[Any], column: Column, location: str) -> None:
    if column.narrow is not None:
        kept = numbers
        if column.keep is not None:
            kept = numbers[:, : column.keep] if isinstance(column.keep, int) else numbers[:, column.keep]
        if (misfit := first_misfit(kept, column.narrow)) is not None:
            row, problem = misfit
            raise DataError(bad_value(location, column, row, problem))


def bad_value(location: str, column: Column, row: int, problem: str) -> str:
    """Return the message about a value in a row of the row group at `location`."""
    position = "" if column.position is None else f", position {column.position}"
    return f"{location}, row {row} (both counted from 0): column '{column.name}'{position}: {problem}"


def numpy_dtype(dtype: torch.dtype) -> np.dtype[Any]:
    """Return the numpy dtype that holds the values of a torch dtype: float32 for bfloat16, which numpy lacks."""
    dtype = torch.float32 if dtype == torch.bfloat16 else dtype
    return np.dtype(torch.empty(0, dtype=dtype).numpy().dtype)
