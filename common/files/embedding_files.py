"""Reads and writes embedding files: Parquet files with one row per entity, in the columns entity, index and embedding.

`entity` is a string or an integer of any size, `index` is the entity's row in its table, and `embedding` is a list of
float32. This module knows neither what the entities are nor how their embeddings are compared.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from common.process.paths import user_path
from common.reader.column import Column, checked_values, stored_dtype
from common.reader.files import READ_ERRORS, DataError
from common.reader.parquet_file import check_columns_fit, create_parquet, open_parquet
from common.reader.vectors import vector_array, vector_field

_ROW_GROUP_BYTES = 8 * 2**20

# Marks in a file's metadata that its entities are the indices.
_UNNAMED = {b"entities": b"index"}

_INDEX = Column("index", torch.int64)


class EmbeddingBlock(NamedTuple):
    """A block of consecutive rows of a file.

    Attributes:
      start: row of the file at which the block starts.
      indices: [rows], int64.
      values: [rows, dim], float32.
    """

    start: int
    indices: NDArray[np.int64]
    values: NDArray[np.float32]


def write_embeddings(path: Path, entities: pa.Array | None, values: NDArray[Any]) -> None:
    """Write the rows of a table, in row groups of about 8 MiB.

    Args:
      path: the file to write.
      entities: names of the rows, [rows], strings or integers. None if the rows have no names; their indices are
        written instead.
      values: embeddings, [rows, dim], floats.
    """
    num_rows, dim = values.shape
    index = np.arange(num_rows)
    named = pa.array(index) if entities is None else entities
    embedding = vector_field("embedding", "float32", dim, "list")
    schema = pa.schema(
        [
            pa.field("entity", named.type, nullable=False),
            pa.field("index", pa.int64(), nullable=False),
            embedding,
        ],
        _UNNAMED if entities is None else None,
    )
    plain = ["entity", "index"]
    rows_per_group = max(1, _ROW_GROUP_BYTES // (4 * dim))
    with create_parquet(
        path,
        schema,
        # zstd barely compresses floats that look random.
        compression={"entity": "zstd", "index": "zstd", "embedding.list.element": "none"},
        use_dictionary=False,
        write_statistics=plain,
    ) as writer:
        for start in range(0, num_rows, rows_per_group):
            block = values[start : start + rows_per_group].astype(np.float32, copy=False)
            columns = [named.slice(start, len(block)), pa.array(index[start : start + len(block)])]
            writer.write_table(pa.Table.from_arrays([*columns, vector_array(block, embedding)], schema=schema))


def embedding_tables(path: Path) -> dict[str, Path]:
    """Return the embedding files at a path, by table name.

    A file is named <table>.parquet. The path is such a file or a directory of them; if it is neither, the result is
    empty.
    """
    if path.is_file():
        return {path.stem: path}
    return {file.stem: file for file in sorted(path.glob("*.parquet")) if not file.name.startswith(".")}


def comparable(first: pa.Array, second: pa.Array) -> tuple[pa.Array, pa.Array]:
    """Return entities of two files in one type, in which two entities are equal if they are the same.

    An integer is the same as the text that writes it in decimal, without leading zeros.

    Args:
      first, second: strings or integers, arrays or chunked arrays.
    """
    types = {wide_type(first.type), wide_type(second.type)}
    common = types.pop() if len(types) == 1 else pa.large_string()
    return first.cast(common), second.cast(common)


def wide_type(kind: pa.DataType) -> pa.DataType:
    """Return int64, uint64 or large_string, which holds all values of an entity's type."""
    if pa.types.is_uint64(kind):
        return kind
    return pa.int64() if pa.types.is_integer(kind) else pa.large_string()


class EmbeddingFile:
    """An embedding file with a valid footer, read one row group at a time.

    Attributes:
      path: path of the file.
      num_rows: number of rows, at least 1.
      dim: length of an embedding.
      is_named: whether the entities have names; otherwise they are the indices.
    """

    def __init__(self, path: Path) -> None:
        """Open the file and check its footer.

        Raises:
          DataError: the file cannot be read, lacks a column, has a column of the wrong type, or has no rows.
        """
        self.path = user_path(path)
        if self.path.is_dir():
            files = ", ".join(file.name for file in embedding_tables(self.path).values())
            raise DataError(
                f"{path}: this is a directory; give an embedding file. *.parquet files in it: {files or 'none'}"
            )
        if not self.path.exists():
            raise DataError(f"{path}: no such file (current directory: {Path.cwd()})")
        try:
            with open_parquet(self.path) as file:
                metadata, schema = file.metadata, file.schema_arrow
                first = next(file.iter_batches(1, columns=["embedding"]), None)
        except READ_ERRORS as error:
            raise DataError(f"{path}: cannot read this file as an embedding file: {error}") from error
        for name in ("entity", "index", "embedding"):
            if schema.get_field_index(name) < 0:
                found = ", ".join(schema.names) or "none"
                raise DataError(
                    f"{path}: no column '{name}'; an embedding file has the columns entity, index and embedding. "
                    f"Columns found: {found}"
                )
        if first is None or not metadata.num_rows:
            raise DataError(f"{path}: the file has no rows; give a file with embeddings")
        self.num_rows: int = metadata.num_rows
        self.is_named = _UNNAMED.items() & (metadata.metadata or {}).items() == set()
        self._num_groups: int = metadata.num_row_groups
        kind = schema.field("entity").type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_integer(kind)):
            raise DataError(f"{path}: column 'entity': found {kind}, expected strings or integers")
        self.dim = self._dim(schema.field("embedding").type, first.column(0))
        self._embedding = Column("embedding", torch.float32, width=self.dim)
        for column in (_INDEX, self._embedding):
            try:
                stored_dtype(schema.field(column.name), column)
            except ValueError as error:
                raise DataError(f"{path}: column '{column.name}': {error}") from error

    def _dim(self, kind: pa.DataType, first: pa.Array) -> int:
        if pa.types.is_fixed_size_list(kind):
            dim: int = kind.list_size
        elif (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and first[0].is_valid:
            dim = len(first[0])
        else:
            raise DataError(f"{self.path}: column 'embedding': found {kind}, expected lists of floats")
        if dim == 0:
            raise DataError(f"{self.path}: column 'embedding': found empty lists, expected at least one float per row")
        return dim

    def entities(self) -> pa.Array:
        """Return the entities of all rows in file order, [rows], int64, uint64 or large_string. They are unique.

        Raises:
          DataError: the column cannot be read, or an entity is null or appears more than once.
        """
        try:
            with open_parquet(self.path) as file:
                check_columns_fit(self.path, file, ["entity"])
                column = file.read(columns=["entity"]).column(0)
            column = column.cast(wide_type(column.type))
        except READ_ERRORS as error:
            raise DataError(f"{self.path}: cannot read column 'entity': {error}") from error
        entities = column.combine_chunks()
        if entities.null_count:
            row = pc.index(entities.is_null(), True).as_py()
            raise DataError(f"{self.path}: row {row} (counted from 0): column 'entity': found null")
        # Sorting needs a tenth of the memory that counting values does.
        ordered = entities.take(pc.array_sort_indices(entities))
        duplicate = pc.index(pc.equal(ordered[1:], ordered[:-1]), True).as_py()
        if duplicate >= 0:
            raise DataError(f"{self.path}: column 'entity': {ordered[duplicate].as_py()!r} appears more than once")
        return entities

    def blocks(self, containing: NDArray[np.int64] | None = None) -> Iterator[EmbeddingBlock]:
        """Yield the rows one row group at a time.

        Args:
          containing: rows of the file, counted from 0; row groups that contain none of them are skipped. None reads
            all row groups.

        Raises:
          DataError: a row group cannot be read, or holds a null or an embedding of a different length.
        """
        start = 0
        try:
            with open_parquet(self.path) as file:
                for group in range(self._num_groups):
                    end = start + file.metadata.row_group(group).num_rows
                    if end > start and (containing is None or ((containing >= start) & (containing < end)).any()):
                        table = file.read_row_group(group, columns=["index", "embedding"], use_threads=False)
                        location = f"{self.path}: row group {group}"
                        indices, values = (
                            checked_values(table.column(column.name), table.schema.field(column.name), column, location)
                            for column in (_INDEX, self._embedding)
                        )
                        yield EmbeddingBlock(
                            start, indices.astype(np.int64, copy=False), values.astype(np.float32, copy=False)
                        )
                    start = end
        except READ_ERRORS as error:
            raise DataError(f"{self.path}: cannot read this file: {error}") from error
