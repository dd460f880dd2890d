"""Writes Parquet files from numpy arrays: columns of numbers and of vectors. Knows nothing about their meaning."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from common.errors import UserError
from common.files.durable import sync_directory, sync_file
from common.reader.parquet_file import create_parquet
from common.reader.vectors import Storage, vector_array, vector_field


class TableError(UserError):
    """Raised if arrays do not fit the declared columns."""


class TableColumn(NamedTuple):
    """A non-null column to write.

    Attributes:
      name: name of the column in the file.
      dtype: numpy name of the dtype.
      width: numbers per row of a column of vectors; None for one number per row.
    """

    name: str
    dtype: str
    width: int | None = None


# A row group of this size is decoded in about 10 ms, and one for each lane takes little memory.
_ROW_GROUP_BYTES = 8 * 2**20
_MAX_ROW_GROUP_ROWS = 65_536


def _rows_per_group(columns: Iterable[TableColumn]) -> int:
    bytes_per_row = sum(np.dtype(column.dtype).itemsize * (column.width or 1) for column in columns)
    return max(1, min(_ROW_GROUP_BYTES // bytes_per_row, _MAX_ROW_GROUP_ROWS))


class TableWriter:
    """Writes a Parquet file in row groups of `row_group_size` rows, compressed with zstd.

    Vectors are stored as binary (common/reader/vectors.py), which is faster to read, or as lists, which any tool can
    read. Binary vectors that zstd barely compresses, such as embeddings, are stored uncompressed.

    The file appears under its name, replacing any existing file, when the `with` block ends without an error. Until
    then, it is a hidden file in the same directory. Its bytes depend on the values, `columns` and
    `row_group_size`, but not on how the rows are split into calls of `write`. The writer holds one row group and the
    rows of one `write` in memory.
    """

    def __init__(
        self,
        path: Path,
        columns: Sequence[TableColumn],
        row_group_size: int | None = None,
        *,
        vectors: Storage = "binary",
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Declare the file; nothing is written yet.

        Args:
          path: the file to write.
          columns: its columns, in order.
          row_group_size: rows per row group; None for about 8 MiB.
          vectors: how columns of vectors are stored.
          metadata: key-value metadata of the file.
        """
        self.path = path
        self.num_rows = 0
        self._columns = columns
        self._row_group_size = row_group_size or _rows_per_group(columns)
        self._pending: list[dict[str, np.ndarray[Any, Any]]] = []
        self._num_pending = 0
        self._partial = path.with_name(f".{path.name}.partial")
        self._schema = pa.schema([_arrow_field(column, vectors) for column in columns], dict(metadata or {}))
        self._writer: pq.ParquetWriter | None = None
        self._digest = hashlib.blake2b(digest_size=16)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._flush(at_least=1)
                if self._writer is None:
                    self._writer = self._open(self._schema.empty_table())
                # It is part of the footer, and therefore of the fingerprint by which a resumed run recognizes its data.
                self._writer.add_key_value_metadata({"values": self._digest.hexdigest()})
            if self._writer is not None:
                self._writer.close()
            if kind is None:
                sync_file(self._partial)
                self._partial.replace(self.path)
                sync_directory(self.path.parent)
        finally:
            self._partial.unlink(missing_ok=True)

    def write(self, arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Append rows.

        Args:
          arrays: one array per column, [rows] or [rows, width], of exactly the declared dtype.

        Raises:
          TableError: names, dtypes or shapes differ from `columns`. No row is added.
        """
        num_rows = self._check(arrays)
        self._pending.append({column.name: arrays[column.name].copy() for column in self._columns})
        self._num_pending += num_rows
        self.num_rows += num_rows
        self._flush(at_least=self._row_group_size)

    def _check(self, arrays: Mapping[str, np.ndarray[Any, Any]]) -> int:
        names = [column.name for column in self._columns]
        if set(names) != set(arrays):
            missing, unknown = sorted(set(names) - set(arrays)), sorted(set(arrays) - set(names))
            raise TableError(f"{self.path}: missing columns {missing}, unknown columns {unknown}")
        num_rows = len(arrays[names[0]])
        for column in self._columns:
            array = arrays[column.name]
            shape = (num_rows,) if column.width is None else (num_rows, column.width)
            if array.dtype != column.dtype or array.shape != shape:
                raise TableError(
                    f"{self.path}: column '{column.name}' is {array.dtype}{list(array.shape)}, "
                    f"expected {column.dtype}{list(shape)}"
                )
        return num_rows

    def _flush(self, at_least: int) -> None:
        if self._num_pending < at_least:
            return
        rows = {
            column.name: np.concatenate([arrays[column.name] for arrays in self._pending]) for column in self._columns
        }
        size = self._row_group_size
        while self._num_pending >= at_least:
            group = {name: array[:size] for name, array in rows.items()}
            rows = {name: array[size:] for name, array in rows.items()}
            table = self._table(group)
            if self._writer is None:
                self._writer = self._open(table)
            self._writer.write_table(table, row_group_size=size)
            for array in group.values():
                self._digest.update(np.ascontiguousarray(array).data)
            self._num_pending = len(rows[self._columns[0].name])
        self._pending = [rows]

    def _open(self, first: pa.Table) -> pq.ParquetWriter:
        """Create the file; the first row group decides which columns are compressed."""
        paths = {name: f"{name}.list.element" if _is_list(first[name]) else name for name in self._schema.names}
        compressed = [path for name, path in paths.items() if not _is_binary(first[name]) or _shrinks(first[name])]
        # A dictionary of whole vectors saves nothing, and their statistics would fill the footer.
        plain = [column.name for column in self._columns if column.width is None]
        return create_parquet(
            self._partial,
            self._schema,
            compression={path: "zstd" if path in compressed else "none" for path in paths.values()},
            compression_level=dict.fromkeys(compressed, 1),
            use_dictionary=plain,
            write_statistics=plain,
        )

    def _table(self, arrays: Mapping[str, np.ndarray[Any, Any]]) -> pa.Table:
        values = [
            pa.array(np.ascontiguousarray(arrays[field.name]))
            if column.width is None
            else vector_array(arrays[field.name], field)
            for column, field in zip(self._columns, self._schema, strict=True)
        ]
        return pa.Table.from_arrays(values, schema=self._schema)


def _is_list(column: pa.ChunkedArray) -> bool:
    return bool(pa.types.is_fixed_size_list(column.type))


def _is_binary(column: pa.ChunkedArray) -> bool:
    return bool(pa.types.is_fixed_size_binary(column.type))


def _shrinks(column: pa.ChunkedArray) -> bool:
    """Return whether zstd makes a column of binary vectors smaller by more than a tenth."""
    size = sum(chunk.buffers()[1].size for chunk in column.chunks)
    saved = size - sum(pa.Codec("zstd", 1).compress(chunk.buffers()[1]).size for chunk in column.chunks)
    return bool(saved > size / 10)


def _arrow_field(column: TableColumn, vectors: Storage) -> pa.Field:
    if column.width is None:
        return pa.field(column.name, pa.from_numpy_dtype(np.dtype(column.dtype)), nullable=False)
    return vector_field(column.name, column.dtype, column.width, vectors)
