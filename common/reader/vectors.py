"""Vectors of a fixed width in Parquet: as lists, which any tool reads, or as binary, which is read faster.

A binary vector is one fixed-size binary value a row, its numbers little-endian and one after the other; the field's
metadata says of which dtype and how many. Nothing is decoded value by value, so that reading costs a decompression
and little more.
"""

import re
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Storage = Literal["binary", "list"]

DTYPES = ("float16", "float32", "float64", "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32")
"""Of the numbers of a binary vector, by their numpy names."""

_DTYPE, _WIDTH = b"dtype", b"width"


class Vectors(NamedTuple):
    """What a column's metadata says of its binary vectors."""

    dtype: np.dtype[Any]
    width: int


def vector_field(name: str, dtype: str, width: int, storage: Storage) -> pa.Field:
    """The non-null field of a column of vectors, `width` numbers of `dtype` (a numpy name) a row."""
    value = np.dtype(dtype)
    if storage == "list":
        element = pa.field("element", pa.from_numpy_dtype(value), nullable=False)
        return pa.field(name, pa.list_(element, width), nullable=False)
    metadata = {_DTYPE: value.name.encode(), _WIDTH: str(width).encode()}
    return pa.field(name, pa.binary(width * value.itemsize), nullable=False, metadata=metadata)


def vector_array(values: NDArray[Any], field: pa.Field) -> pa.Array:
    """[rows, width] as an array of a vector_field()'s type."""
    values = np.ascontiguousarray(values)
    if pa.types.is_fixed_size_list(field.type):
        return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), type=field.type)
    little_endian = values.astype(values.dtype.newbyteorder("<"), copy=False)
    return pa.FixedSizeBinaryArray.from_buffers(field.type, len(values), [None, pa.py_buffer(little_endian)])


def binary_vectors(field: pa.Field) -> Vectors:
    """What the metadata of a fixed-size binary field says.

    Raises:
      ValueError: it says nothing, or what does not fit the field's size; the message says what is needed.
    """
    metadata = field.metadata or {}
    dtype, width = (metadata.get(key, b"").decode("utf-8", "replace") for key in (_DTYPE, _WIDTH))
    found = f"dtype {dtype!r}, width {width!r}" if dtype or width else "neither"
    if dtype not in DTYPES or not re.fullmatch(r"[1-9]\d{0,9}", width):
        raise ValueError(
            f"{field.type} with {found} in the field's metadata, needed are dtype (one of {', '.join(DTYPES)}) "
            "and width (a number)"
        )
    vectors = Vectors(np.dtype(dtype).newbyteorder("<"), int(width))
    if vectors.width * vectors.dtype.itemsize != field.type.byte_width:
        raise ValueError(f"{field.type} found, but the field's metadata says {found}")
    return vectors


def to_numpy(array: pa.FixedSizeBinaryArray, vectors: Vectors) -> NDArray[Any]:
    """[rows, width], read-only: the array's own memory, without a copy."""
    first = array.offset * array.type.byte_width
    numbers = np.frombuffer(array.buffers()[1], vectors.dtype, len(array) * vectors.width, first)
    return numbers.reshape(-1, vectors.width)


def with_lists(table: pa.Table) -> pa.Table:
    """The table with its binary vectors as lists, for other tools; nothing is copied.

    Raises:
      ValueError: the metadata of a fixed-size binary column does not fit it.
    """
    for index, field in enumerate(table.schema):
        if pa.types.is_fixed_size_binary(field.type):
            vectors = binary_vectors(field)
            lists = vector_field(field.name, vectors.dtype.name, vectors.width, "list")
            chunks = [vector_array(to_numpy(chunk, vectors), lists) for chunk in table.column(index).chunks]
            table = table.set_column(index, lists, pa.chunked_array(chunks, lists.type))
    return table
