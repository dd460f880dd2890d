"""Files of embeddings: Parquet with a row for each entity, in the columns entity, index and embedding.

`entity` is a string or an integer, `index` the row that it had in its table, `embedding` a list of float32. Whose
embeddings they are, and what they are compared by, is not known here.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from common.process.paths import user_path
from common.reader.column import Column, checked_values, stored_dtype
from common.reader.files import UNREADABLE, DataError
from common.reader.vectors import vector_array, vector_field

_ROW_GROUP_BYTES = 8 * 2**20

# In a file's metadata: its entities are only the indices again.
_UNNAMED = {b"entities": b"index"}

_INDEX = Column("index", torch.int64)


class EmbeddingBlock(NamedTuple):
    """Some rows of a file.

    Attributes:
      start: position of the first of them in the file.
      indices: [rows], int64.
      values: [rows, dim], float32.
    """

    start: int
    indices: NDArray[np.int64]
    values: NDArray[np.float32]


def write_embeddings(path: Path, entities: pa.Array | None, values: NDArray[Any]) -> None:
    """Writes the rows of a table in row groups of some 8 MiB.

    Args:
      path: of the file.
      entities: [rows], whose the rows are, strings or integers; None: they have no names, and their indices stand for
        them.
      values: [rows, dim], floats.
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
    with pq.ParquetWriter(
        path,
        schema,
        # zstd makes little of floats that look random.
        compression={"entity": "zstd", "index": "zstd", "embedding.list.element": "none"},
        use_dictionary=False,
        write_statistics=plain,
    ) as writer:
        for start in range(0, num_rows, rows_per_group):
            block = values[start : start + rows_per_group].astype(np.float32, copy=False)
            columns = [named.slice(start, len(block)), pa.array(index[start : start + len(block)])]
            writer.write_table(pa.Table.from_arrays([*columns, vector_array(block, embedding)], schema=schema))


def embedding_tables(path: Path) -> dict[str, Path]:
    """The files of embeddings that a path stands for, by table: itself, or a directory's; {} where it is neither.

    A file is called <table>.parquet.
    """
    if path.is_file():
        return {path.stem: path}
    return {file.stem: file for file in sorted(path.glob("*.parquet")) if not file.name.startswith(".")}


class EmbeddingFile:
    """A file whose footer was checked. Rows are read a row group at a time.

    Attributes:
      path: of the file.
      num_rows: at least 1.
      dim: numbers of an embedding.
      is_named: whether entities have names, and are not only the indices again.
    """

    def __init__(self, path: Path) -> None:
        """Raises DataError: the file can't be read, lacks a column or has it in another type, or has no rows."""
        self.path = user_path(path)
        if self.path.is_dir():
            files = ", ".join(file.name for file in embedding_tables(self.path).values())
            raise DataError(f"{path}: a directory; give a file of embeddings; *.parquet files in it: {files or 'none'}")
        if not self.path.exists():
            raise DataError(f"{path}: no such file (looked from {Path.cwd()})")
        try:
            with pq.ParquetFile(self.path) as file:
                metadata, schema = file.metadata, file.schema_arrow
                first = next(file.iter_batches(1, columns=["embedding"]), None)
        except UNREADABLE as error:
            raise DataError(f"{path}: can't be read as a file of embeddings: {error}") from error
        for name in ("entity", "index", "embedding"):
            if schema.get_field_index(name) < 0:
                found = ", ".join(schema.names) or "none"
                raise DataError(
                    f"{path}: no column '{name}'; a file of embeddings has the columns entity, index and embedding; "
                    f"found: {found}"
                )
        if first is None or not metadata.num_rows:
            raise DataError(f"{path}: not one row; give a file with embeddings")
        self.num_rows: int = metadata.num_rows
        self.is_named = _UNNAMED.items() & (metadata.metadata or {}).items() == set()
        self._num_groups: int = metadata.num_row_groups
        kind = schema.field("entity").type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_integer(kind)):
            raise DataError(f"{path}: column 'entity': {kind} found, strings or integers expected")
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
            raise DataError(f"{self.path}: column 'embedding': {kind} found, lists of floats expected")
        if dim == 0:
            raise DataError(f"{self.path}: column 'embedding': empty lists found")
        return dim

    def entities(self) -> pa.Array:
        """Of all rows, in the order of the file, [rows], int64 or large_string, each once.

        Raises:
          DataError: the column can't be read, or an entity is missing or there several times.
        """
        try:
            with pq.ParquetFile(self.path) as file:
                column = file.read(columns=["entity"]).column(0)
            column = column.cast(pa.int64() if pa.types.is_integer(column.type) else pa.large_string())
        except UNREADABLE as error:
            raise DataError(f"{self.path}: column 'entity' can't be read: {error}") from error
        entities = column.combine_chunks()
        if entities.null_count:
            raise DataError(
                f"{self.path}: row {pc.index(entities.is_null(), True).as_py()}: column 'entity': null found"
            )
        # Sorting takes a tenth of the memory of counting.
        ordered = entities.take(pc.array_sort_indices(entities))
        twice = pc.index(pc.equal(ordered[1:], ordered[:-1]), True).as_py()
        if twice >= 0:
            raise DataError(f"{self.path}: column 'entity': {ordered[twice].as_py()!r} is there several times")
        return entities

    def blocks(self, holding: NDArray[np.int64] | None = None) -> Iterator[EmbeddingBlock]:
        """The rows, a row group at a time; of `holding`, only row groups with one of these positions.

        Raises:
          DataError: a row group can't be read, or holds a null or an embedding of another length.
        """
        start = 0
        try:
            with pq.ParquetFile(self.path) as file:
                for group in range(self._num_groups):
                    end = start + file.metadata.row_group(group).num_rows
                    if end > start and (holding is None or ((holding >= start) & (holding < end)).any()):
                        table = file.read_row_group(group, columns=["index", "embedding"], use_threads=False)
                        place = f"{self.path}: row group {group}"
                        indices, values = (
                            checked_values(table.column(column.name), table.schema.field(column.name), column, place)
                            for column in (_INDEX, self._embedding)
                        )
                        yield EmbeddingBlock(
                            start, indices.astype(np.int64, copy=False), values.astype(np.float32, copy=False)
                        )
                    start = end
        except UNREADABLE as error:
            raise DataError(f"{self.path}: can't be read: {error}") from error
