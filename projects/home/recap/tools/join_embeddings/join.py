"""Joins embeddings into a Heavy Ranker's table.

Looks up the values of each embedding column in a file of embeddings (common/files/embedding_files.py), such as an
export of graph embeddings, by the ids in another column. Holds the embeddings and one row group in memory.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from tabulate import tabulate

from common.errors import UserError
from common.files.atomic_directory import atomic_directory, target_of
from common.files.embedding_files import EmbeddingFile, comparable
from common.process.memory import memory_shortage
from common.reader.files import READ_ERRORS, DataError, files_below, unique_files, warn_about_hidden
from common.reader.parquet_file import create_parquet, open_parquet
from common.reader.vectors import vector_array, vector_field
from projects.home.recap.data.schema import read_schema

logger = logging.getLogger(__name__)

_SCHEMA = "schema.json"


class EmbeddingSource(NamedTuple):
    """The ids and the embeddings of a column."""

    id_column: str
    """Name of the table's column of ids, strings or integers."""
    path: str
    """Path of the file of embeddings."""


@dataclass
class JoinedColumn:
    """A column that was joined, and its row counts."""

    source: EmbeddingSource
    dim: int
    num_rows: int = 0
    num_missing: int = 0
    """Number of rows whose id has no embedding. They are filled with zeros."""


class _Embeddings:
    """Looks up the embeddings of a file by id."""

    def __init__(self, path: str) -> None:
        self._file = EmbeddingFile(Path(path))
        self.dim = self._file.dim
        if shortage := memory_shortage(4 * (self._file.num_rows + 1) * self.dim):
            raise UserError(
                f"{path}: holding {self._file.num_rows:,} embeddings of {self.dim} numbers {shortage}. Keep only the "
                "entities of the table in this file"
            )
        self.values = np.empty((self._file.num_rows + 1, self.dim), np.float32)
        """Embeddings, float32 [entities + 1, dim]. The last row is zeros."""
        for block in self._file.blocks():
            self.values[block.start : block.start + len(block.indices)] = block.values
        self.values[-1] = 0
        self._entities = self._file.entities()
        self._sorted: dict[pa.DataType, tuple[pa.Array, NDArray[np.int64]]] = {}

    def positions(self, ids: pa.ChunkedArray) -> NDArray[np.int64]:
        """Return the position in `values` of each id's embedding, [rows]; the last row for an id without one.

        Raises:
          UserError: the ids are integers, but no entity is.
        """
        if ids.type not in self._sorted:
            self._sorted[ids.type] = self._sort(ids)
        keys, positions = self._sorted[ids.type]
        # The types decide how to compare; converting all entities again would take long.
        wanted = comparable(ids, self._entities[:0])[0].combine_chunks()
        nearest = np.minimum(pc.search_sorted(keys, wanted).to_numpy(), len(keys) - 1)
        found = pc.equal(keys.take(pa.array(nearest)), wanted).to_numpy(zero_copy_only=False)
        return np.where(found, positions[nearest], len(self.values) - 1)

    def _sort(self, ids: pa.ChunkedArray) -> tuple[pa.Array, NDArray[np.int64]]:
        """Return the entities in ascending order, in a type that compares with `ids`, and their positions."""
        _, entities = comparable(ids, self._entities)
        if (
            pa.types.is_integer(ids.type)
            and not pa.types.is_integer(self._entities.type)
            and not pc.any(pc.match_substring_regex(entities, r"^(0|-?[1-9][0-9]*)$")).as_py()
        ):
            raise UserError(
                f"{self._file.path}: no entity is an integer, but the ids to look up are. The table and the embeddings "
                "must use the same ids for users and authors"
            )
        order = pc.array_sort_indices(entities)
        return entities.take(order), order.to_numpy().astype(np.int64)


def join_embeddings(data: Path, out: Path, sources: Mapping[str, EmbeddingSource]) -> dict[str, JoinedColumn]:
    """Copy a table and add or replace embedding columns. Rows and row groups stay the same.

    Args:
      data: directory with schema.json and, at any depth, *.parquet files.
      out: directory to create. It gets the same files and appears when it is complete.
      sources: source of each column to join, by its name in projects.home.recap.data.parquet.EMBEDDINGS.

    Returns:
      The joined columns by name.

    Raises:
      UserError: a file is unreadable; an id column is missing, of a wrong type, or has nulls; no id of a column has an
        embedding; or `out` cannot be written.
    """
    if not data.is_dir():
        problem = "is a file" if data.exists() else f"no such directory (current directory: {Path.cwd()})"
        raise UserError(f"--data {data}: {problem}. Give the directory of a table, with {_SCHEMA} and *.parquet files")
    schema = read_schema(str(data / _SCHEMA), "--data")
    try:
        found, hidden = files_below(data)
    except OSError as error:
        raise UserError(f"--data {data}: cannot read {error.filename}: {error.strerror}") from error
    warn_about_hidden([path for path in hidden if path.suffix == ".parquet" or path.is_dir()], f"--data {data}")
    files = unique_files((path for path in found if path.suffix == ".parquet"), f"--data {data}")
    if not files:
        raise UserError(f"--data {data}: no *.parquet files in this directory or below it")
    if target_of(out).is_relative_to(data.resolve()):
        raise UserError(f"--out {out} is inside --data {data}. Give a directory outside it")
    with atomic_directory(out) as partial:
        embeddings = {path: _Embeddings(path) for path in {source.path for source in sources.values()}}
        joined = {column: JoinedColumn(source, embeddings[source.path].dim) for column, source in sources.items()}
        for path in files:
            output = partial / path.relative_to(data)
            output.parent.mkdir(parents=True, exist_ok=True)
            _join_file(path, output, embeddings, joined)
            logger.info("joined %s", out / path.relative_to(data))
        for column, result in joined.items():
            if result.num_missing == result.num_rows:
                raise UserError(
                    f"--{column} {result.source.id_column}={result.source.path}: none of the ids in the "
                    f"{result.num_rows} rows has an embedding. The table and the embeddings must use the same ids for "
                    "users and authors"
                )
            if result.num_missing > result.num_rows / 2:
                logger.warning(
                    "--%s %s=%s: most of the ids, those of %s of %s rows, have no embedding and get zeros. Check that "
                    "the table and the embeddings use the same ids",
                    column,
                    result.source.id_column,
                    result.source.path,
                    f"{result.num_missing:,}",
                    f"{result.num_rows:,}",
                )
        widths = {name: (entry.dtype, entry.length) for name, entry in schema.items()}
        widths |= {column: ("float_list", result.dim) for column, result in joined.items()}
        _write_schema(partial / _SCHEMA, widths)
    return joined


def _join_file(
    path: Path, output: Path, embeddings: Mapping[str, _Embeddings], joined: Mapping[str, JoinedColumn]
) -> None:
    """Copy the file `path` to `output` with the joined columns, and update the row counts of `joined`."""
    try:
        with open_parquet(path) as file:
            fields = [field for field in file.schema_arrow if field.name not in joined]
            added = [vector_field(column, "float32", result.dim, "binary") for column, result in joined.items()]
            kept = pa.schema(fields)
            # A resumed run compares this digest: embeddings of the same size leave no other trace in the footer.
            digest = hashlib.blake2b((file.metadata.metadata or {}).get(b"values", b""), digest_size=16)
            options = _writer_options(file.metadata, joined)
            with create_parquet(output, pa.schema([*fields, *added]), **options) as writer:
                for group in range(file.metadata.num_row_groups):
                    table = file.read_row_group(group, columns=kept.names, use_threads=False)
                    columns = [table.column(name) for name in kept.names]
                    for field in added:
                        result = joined[field.name]
                        ids = _ids(table, result.source.id_column, f"{path}: row group {group}")
                        values = embeddings[result.source.path]
                        positions = values.positions(ids)
                        result.num_rows += len(positions)
                        result.num_missing += int((positions == len(values.values) - 1).sum())
                        vectors = vector_array(values.values[positions], field)
                        digest.update(vectors.buffers()[1])
                        columns.append(pa.chunked_array([vectors]))
                    writer.write_table(
                        pa.Table.from_arrays(columns, schema=writer.schema), row_group_size=max(1, table.num_rows)
                    )
                writer.add_key_value_metadata({"values": digest.hexdigest()})
    except READ_ERRORS as error:
        raise DataError(f"{path}: cannot read this file or write {output.name}: {error}") from error


def _writer_options(metadata: pq.FileMetaData, joined: Mapping[str, JoinedColumn]) -> dict[str, Any]:
    """Return the options that keep the storage of the table's columns and store embeddings uncompressed.

    zstd barely compresses embeddings.
    """
    compression: dict[str, str] = dict.fromkeys(joined, "none")
    dictionaries, statistics = [], []
    if metadata.num_row_groups:
        group = metadata.row_group(0)
        for column in map(group.column, range(group.num_columns)):
            name = column.path_in_schema
            if name.split(".")[0] in joined:
                continue
            compression[name] = column.compression if column.compression != "UNCOMPRESSED" else "none"
            if column.has_dictionary_page:
                dictionaries.append(name)
            if column.is_stats_set:
                statistics.append(name)
    return {"compression": compression, "use_dictionary": dictionaries, "write_statistics": statistics}


def _ids(table: pa.Table, name: str, where: str) -> pa.ChunkedArray:
    """Return the column of ids.

    Raises:
      DataError: the column is missing, is neither integer nor string, or has nulls.
    """
    if name not in table.column_names:
        columns = ", ".join(sorted(table.column_names))
        raise DataError(f"{where}: no id column '{name}'. Give one of the columns {columns}")
    ids = table.column(name)
    if not (pa.types.is_integer(ids.type) or pa.types.is_string(ids.type) or pa.types.is_large_string(ids.type)):
        raise DataError(
            f"{where}: column '{name}' has type {ids.type}, but ids must be integers or strings. Give another column"
        )
    if ids.null_count:
        row = pc.index(ids.is_null(), True).as_py()
        raise DataError(f"{where}, row {row} (both counted from 0): column '{name}' is null, but every row needs an id")
    return ids


def _write_schema(path: Path, widths: Mapping[str, tuple[object, int]]) -> None:
    entries = [{"dtype": dtype, "feature_name": name, "length": length} for name, (dtype, length) in widths.items()]
    path.write_text(json.dumps({"schema": entries}, indent=2) + "\n")


def report(out: Path, joined: Mapping[str, JoinedColumn]) -> str:
    """Return a table of the joined columns and their row counts."""
    rows = [
        [
            column,
            result.dim,
            result.source.id_column,
            result.source.path,
            f"{result.num_rows:,}",
            f"{result.num_missing:,} ({result.num_missing / result.num_rows:.1%})",
        ]
        for column, result in joined.items()
    ]
    headers = ["column", "width", "id column", "embeddings", "rows", "rows without embedding (zeros)"]
    table = tabulate(rows, headers=headers, disable_numparse=True)
    return f"{table}\n{out}: wrote the table with these columns, and {_SCHEMA}\n"
