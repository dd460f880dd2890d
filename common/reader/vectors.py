"""Stores vectors of a fixed width in Parquet: as lists, which any tool reads, or as binary, which is faster to read.

A binary vector is one fixed-size binary value per row, which contains the numbers in little-endian order. The field's
metadata gives their dtype and count. Reading a binary vector costs little more than decompression, because no value is
decoded on its own.
"""

import re
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Storage = Literal["binary", "list"]

DTYPES = ("float16", "float32", "float64", "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32")
"""Numpy names of the dtypes that a binary vector can have."""

_DTYPE, _WIDTH = b"dtype", b"width"


class VectorFormat(NamedTuple):
    """Dtype of the numbers of a binary vector, and their count."""

    dtype: np.dtype[Any]
    width: int


def vector_field(name: str, dtype: str, width: int, storage: Storage) -> pa.Field:
    """Return the non-null field of a column of vectors, with `width` numbers of `dtype` (a numpy name) per row."""
    value = np.dtype(dtype)
    if storage == "list":
        element = pa.field("element", pa.from_numpy_dtype(value), nullable=False)
        return pa.field(name, pa.list_(element, width), nullable=False)
    metadata = {_DTYPE: value.name.encode(), _WIDTH: str(width).encode()}
    return pa.field(name, pa.binary(width * value.itemsize), nullable=False, metadata=metadata)


def vector_array(values: NDArray[Any], field: pa.Field) -> pa.Array:
    """Convert values [rows, width] to an Arrow array of the type of a vector_field()."""
    values = np.ascontiguousarray(values)
    if pa.types.is_fixed_size_list(field.type):
        return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), type=field.type)
    little_endian = values.astype(values.dtype.newbyteorder("<"), copy=False)
    return pa.FixedSizeBinaryArray.from_buffers(field.type, len(values), [None, pa.py_buffer(little_endian)])


def is_list(kind: pa.DataType) -> bool:
    """Return whether an array of this type holds lists."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def vector_format(field: pa.Field) -> VectorFormat:
    """Return the format of binary vectors from the metadata of their field.

    Raises:
      ValueError: the metadata lacks the format, or contradicts the size of the field; the message says what is needed.
    """
    metadata = field.metadata or {}
    dtype, width = (metadata.get(key, b"").decode("utf-8", "replace") for key in (_DTYPE, _WIDTH))
    found = f"dtype {dtype!r} and width {width!r}" if dtype or width else "neither dtype nor width"
    if dtype not in DTYPES or not re.fullmatch(r"[1-9]\d{0,9}", width):
        raise ValueError(
            f"found {field.type} with {found} in the field's metadata, "
            f"expected dtype (one of {', '.join(DTYPES)}) and width (a positive integer)"
        )
    vectors = VectorFormat(np.dtype(dtype).newbyteorder("<"), int(width))
    if vectors.width * vectors.dtype.itemsize != field.type.byte_width:
        raise ValueError(f"found {field.type}, but the field's metadata says {found}")
    return vectors


def to_numpy(array: pa.FixedSizeBinaryArray, vectors: VectorFormat) -> NDArray[Any]:
    """Return the vectors as a read-only array [rows, width] over the Arrow array's memory, without a copy."""
    first = array.offset * array.type.byte_width
    numbers = np.frombuffer(array.buffers()[1], vectors.dtype, len(array) * vectors.width, first)
    return numbers.reshape(-1, vectors.width)


def with_lists(table: pa.Table) -> pa.Table:
    """Return the table with its binary vectors as lists, for use with other tools. Vectors are not copied.

    Raises:
      ValueError: the metadata of a fixed-size binary column lacks its format or contradicts its size.
    """
    for index, field in enumerate(table.schema):
        if pa.types.is_fixed_size_binary(field.type):
            vectors = vector_format(field)
            lists = vector_field(field.name, vectors.dtype.name, vectors.width, "list")
            chunks = [vector_array(to_numpy(chunk, vectors), lists) for chunk in table.column(index).chunks]
            table = table.set_column(index, lists, pa.chunked_array(chunks, lists.type))
    return table
