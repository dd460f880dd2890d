"""One column of Parquet files: what is read from it, and from arrow's memory to checked numpy arrays.

Nothing is converted here: rows are stored once and read in another order, so that it is cheaper to convert those of a
batch (reader.py) than a row group as it is decoded.
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
from common.reader.vectors import binary_vectors, to_numpy

Values = Literal["label", "weight", "probability"]


@dataclass(frozen=True, eq=False)
class Column:
    """What is read from one column of the files.

    Attributes:
      name: the column in the file; dots are part of the name.
      dtype: in a batch; an integer type demands an integer column.
      narrow: in a batch instead of dtype; a value that it can't hold (narrow.py) is a mistake. None: dtype.
      width: values per row in the file, in a batch [rows, kept]; None: a plain column, in a batch [rows].
      keep: the first so many of a row's values, or those at these positions, are in a batch; None: all.
      position: of a row's values, read this one alone, as a plain column.
      values: what a value must be: "label" 0 or 1, "weight" finite and >= 0, "probability" 0 <= p <= 1; None: any.
      booleans: whether booleans are taken for 0 and 1, where integers are demanded.
      num_ids: of a column of vectors, position -> n: the values there are ids, 0 <= id < n. None: no position holds
        ids.
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
        """Values per row that are read; None: a plain column."""
        return self.width if self.position is None else None

    @property
    def num_kept(self) -> int | None:
        """Values per row in a batch; None: a plain column."""
        if self.keep is None:
            return self.num_read
        return self.keep if isinstance(self.keep, int) else len(self.keep)

    @property
    def batch_dtype(self) -> torch.dtype:
        """In a batch."""
        return self.dtype if self.narrow is None else self.narrow


# A larger weight would be infinite as a float32.
_LARGEST = np.finfo(np.float32).max


def stored_dtype(field: pa.Field, column: Column) -> np.dtype[Any]:
    """The dtype of the numbers in a column of the files.

    Raises:
      ValueError: the column can't be read as `column` says; the message says what was found and what is expected.
    """
    value_type, width = _value_type_and_width(field)
    if column.width is None and width is not None:
        raise ValueError(f"{field.type} found, one value a row expected")
    if column.width is not None:
        if width is None:
            raise ValueError(f"{field.type} found, lists of {column.width} values expected")
        if width not in (_ANY_WIDTH, column.width):
            kind = "lists" if _is_list(field.type) else "binary vectors"
            raise ValueError(f"{kind} of {width} values found, {column.width} expected")
    if pa.types.is_integer(value_type) or (column.booleans and pa.types.is_boolean(value_type)):
        return _numpy_dtype_of(value_type)
    if not column.dtype.is_floating_point:
        raise ValueError(f"{_told(field)} found, integers expected")
    if not pa.types.is_floating(value_type):
        raise ValueError(f"{field.type} found, numbers expected")
    return _numpy_dtype_of(value_type)


_ANY_WIDTH = 0


def _numpy_dtype_of(kind: pa.DataType) -> np.dtype[Any]:
    dtype: np.dtype[Any] = np.dtype(kind.to_pandas_dtype())
    return dtype


def _value_type_and_width(field: pa.Field) -> tuple[pa.DataType, int | None]:
    """Of a row's numbers; the width is None for a plain column, and 0 where each row may have its own."""
    kind = field.type
    if pa.types.is_fixed_size_binary(kind):
        vectors = binary_vectors(field)
        return pa.from_numpy_dtype(vectors.dtype), vectors.width
    if pa.types.is_fixed_size_list(kind):
        return kind.value_type, kind.list_size
    return (kind.value_type, _ANY_WIDTH) if _is_list(kind) else (kind, None)


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _told(field: pa.Field) -> str:
    if not pa.types.is_fixed_size_binary(field.type):
        return str(field.type)
    vectors = binary_vectors(field)
    return f"vectors of {vectors.width} {vectors.dtype.name}"


def checked_values(chunks: pa.ChunkedArray, field: pa.Field, column: Column, place: str) -> NDArray[Any]:
    """The column of one row group as it is stored, [rows] or [rows, num_read], read-only where that saves a copy.

    Raises:
      DataError: a null, a list of another width, or a value that the column may not hold; the message begins with
        `place` and the row.
    """
    array = chunks.combine_chunks() if chunks.num_chunks != 1 else chunks.chunk(0)
    if array.null_count:
        row = int(np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False))[0])
        raise DataError(bad_value(place, column, row, "null found, every row needs a value"))
    if pa.types.is_fixed_size_binary(array.type):
        numbers = to_numpy(array, binary_vectors(field))
    else:
        numbers = _numbers(array, column, place)
    if column.position is not None:
        numbers = numbers[:, column.position]
    _check_values(numbers, column, place)
    _check_ids(numbers, column, place)
    _check_narrow(numbers, column, place)
    return numbers


def _numbers(array: pa.Array, column: Column, place: str) -> NDArray[Any]:
    values = array
    if column.width is not None:
        if not pa.types.is_fixed_size_list(array.type):
            lengths = np.diff(array.offsets.to_numpy())
            if (lengths != column.width).any():
                row = int(np.flatnonzero(lengths != column.width)[0])
                problem = f"a list of {lengths[row]} values found, {column.width} expected"
                raise DataError(bad_value(place, column, row, problem))
        values = array.flatten()
    if values.null_count:
        row = int(np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))[0]) // (column.width or 1)
        raise DataError(bad_value(place, column, row, "a null among its values, every value is needed"))
    numbers: NDArray[Any] = values.to_numpy(zero_copy_only=False)
    return numbers if column.width is None else numbers.reshape(-1, column.width)


def _check_values(numbers: NDArray[Any], column: Column, place: str) -> None:
    if column.values == "label":
        good, allowed = (numbers == 0) | (numbers == 1), "a label is 0 or 1"
    elif column.values == "weight":
        good, allowed = (numbers >= 0) & (numbers <= _LARGEST), "a weight is not negative and, as a float32, finite"
    elif column.values == "probability":
        good, allowed = (numbers >= 0) & (numbers <= 1), "a probability lies between 0 and 1"
    elif not column.dtype.is_floating_point and not np.can_cast(numbers.dtype, numpy_dtype(column.dtype)):
        limits = torch.iinfo(column.dtype)
        good = (numbers >= limits.min) & (numbers <= limits.max)
        allowed = f"numbers from {limits.min} to {limits.max} can be read"
    else:
        return
    if not good.all():
        index = tuple(np.argwhere(~good)[0])
        raise DataError(bad_value(place, column, int(index[0]), f"{numbers[index]} found, {allowed}"))


def _check_ids(numbers: NDArray[Any], column: Column, place: str) -> None:
    for position, num_ids in (column.num_ids or {}).items():
        ids = numbers[:, position]
        good = (ids >= 0) & (ids < num_ids)
        if not good.all():
            row = int(np.flatnonzero(~good)[0])
            problem = f"{ids[row]} found at position {position}, ids from 0 to {num_ids - 1} can be looked up"
            raise DataError(bad_value(place, column, row, problem))


def _check_narrow(numbers: NDArray[Any], column: Column, place: str) -> None:
    if column.narrow is not None:
        kept = numbers
        if column.keep is not None:
            kept = numbers[:, : column.keep] if isinstance(column.keep, int) else numbers[:, column.keep]
        if (misfit := first_misfit(kept, column.narrow)) is not None:
            row, problem = misfit
            raise DataError(bad_value(place, column, row, problem))


def bad_value(place: str, column: Column, row: int, problem: str) -> str:
    """The message about a value in a row of a row group, which `place` tells."""
    position = "" if column.position is None else f", position {column.position}"
    return f"{place}, row {row} (both counted from 0): column '{column.name}'{position}: {problem}"


def numpy_dtype(dtype: torch.dtype) -> np.dtype[Any]:
    """The numpy dtype that holds values of a torch dtype; numpy has no bfloat16, whose values a float32 holds."""
    dtype = torch.float32 if dtype == torch.bfloat16 else dtype
    return np.dtype(torch.empty(0, dtype=dtype).numpy().dtype)
