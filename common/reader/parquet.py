"""Reads Parquet files as one table of row groups, each decoded into numpy arrays and checked.

Opening a table checks the metadata: it detects a missing column, a wrong type or width, and a table without rows.
Decoding a row group checks its values: it detects nulls, lists of a different width, and values that the column does
not allow. order.py decides the order in which rows are read, and reader.py builds the batches.
"""

import bisect
import collections
import functools
import hashlib
import itertools
import os
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from common.reader.column import Column, bad_value, checked_values, numpy_dtype, stored_dtype
from common.reader.encoder import Encoder
from common.reader.files import READ_ERRORS, DataError, Files
from common.reader.parquet_file import first_leaves, has_repeats, no_column, open_parquet, read_footer

RowGroup = dict[Any, NDArray[Any]]
"""Columns of a row group with their stored dtypes, by key (anything hashable), each [rows] or [rows, width]."""


class BadValue(NamedTuple):
    """An invalid value.

    Attributes:
      key: key of its column.
      row: its row in the row group, counted from 0.
      problem: what was found and what is allowed.
    """

    key: Hashable
    row: int
    problem: str


# Number of footers kept in memory. Reading the footer of a file with thousands of row groups takes longer than decoding
# one of them.
_FOOTERS = 64


class _Version(NamedTuple):
    """Attributes of a file that differ if it was changed or replaced."""

    inode: int
    size: int
    mtime_ns: int


class ParquetTable:
    """The row groups of all files, in file order. Several threads may decode at the same time."""

    def __init__(
        self,
        files: Files,
        columns: Mapping[Any, Column],
        *,
        rows: Callable[[int], range] | None = None,
        check: Callable[[RowGroup], BadValue | None] | None = None,
        prepare: Callable[[RowGroup], RowGroup] | None = None,
        cache: bool = False,
        encoder: Encoder | None = None,
    ) -> None:
        """Read and check the footer of every file.

        Args:
          files: the files to read.
          columns: the columns to read, by the key under which they are delivered.
          rows: maps the number of rows in all files to the range of rows that the table contains. The range has step 1
            and is not empty. Row groups outside it are not decoded. None reads all rows.
          check: returns an invalid value that only a comparison of columns can find, or None. It gets all rows of a
            row group, each column [rows] or [rows, num_read], and must not modify them.
          prepare: maps the columns of a row group to those from which batches are built. It may add, replace and
            remove columns, but must not modify the arrays.
          cache: keep decoded row groups in memory.
          encoder: encodes columns that `columns` cannot describe. What it returns becomes part of a row group, under
            keys that `columns` doesn't have, before `prepare`.

        Raises:
          DataError: a file cannot be read, lacks a column, or has one of the wrong type or width; or there are no rows.
        """
        self.inputs = files.description
        self.columns: Mapping[Any, Column] = dict(columns)
        self._paths = files.paths
        self._check = check
        self._prepare = prepare
        self._encoder = encoder
        self._cache: dict[int, RowGroup] | None = {} if cache else None
        self._common_names: set[str] | None = None
        self._schema: pa.Schema | None = None
        self._footer = functools.lru_cache(maxsize=_FOOTERS)(read_footer)
        self._versions: list[_Version] = []
        self._first_group: list[int] = []
        self._dtypes: dict[Hashable, np.dtype[Any]] = {}
        # Leaf columns of strings, to decode as dictionaries where values repeat, by file.
        self._dictionaries: list[list[int]] = []
        self.column_names: set[str] = set()
        """Names of all columns of the files."""
        self.column_types: dict[str, dict[pa.DataType, Path]] = {}
        """First file with each type of a column, by name."""
        self.files: dict[str, str] = {}
        """Number of rows and digest of the footer of each file, by its path below the common folder."""
        in_files: list[int] = []
        digest = hashlib.blake2b(digest_size=16)
        folder = os.path.commonpath([path.parent for path in self._paths])
        for path in self._paths:
            metadata = self._open(path)
            self._first_group.append(len(in_files))
            in_files.extend(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))
            name = path.relative_to(folder)
            try:
                footer = _footer_bytes(path)
            except OSError as error:
                raise DataError(f"{path}: cannot read this file: {error}") from error
            digest.update(os.fsencode(name) + b"\n" + footer)
            self.files[str(name)] = f"{metadata.num_rows} rows, {hashlib.blake2b(footer, digest_size=8).hexdigest()}"
        ends = np.cumsum(np.asarray(in_files, dtype=np.int64))
        num_rows = int(ends[-1]) if len(ends) else 0
        if num_rows == 0:
            raise DataError(f"{self.inputs}: {len(self._paths)} file(s) with no rows")
        # A footer contains sizes and statistics and, in files of TableWriter, a digest of the values.
        self.fingerprint = f"{len(self._paths)} files, {num_rows} rows, {digest.hexdigest()}"
        chosen = range(num_rows) if rows is None else rows(num_rows)
        starts = ends - in_files
        first, last = 0, len(in_files)
        if chosen != range(num_rows):
            first = int(np.searchsorted(ends, chosen.start, "right"))
            last = int(np.searchsorted(starts, chosen.stop))
            self.fingerprint += f", of these {chosen.start} to {chosen.stop - 1}"
        self.rows_per_group = (np.minimum(ends, chosen.stop) - np.maximum(starts, chosen.start))[first:last]
        self.num_rows = len(chosen)
        self._groups_before = first
        # Rows of the first row group to skip. rows_per_group bounds the rows of the last one.
        self._rows_before = chosen.start - int(starts[first])

    @property
    def num_files(self) -> int:
        """Number of files in the table."""
        return len(self._paths)

    @property
    def paths(self) -> tuple[Path, ...]:
        """Paths of the files, in stored order."""
        return self._paths

    @property
    def modified(self) -> dict[str, int]:
        """Time of the last modification of each file, in nanoseconds, by its path below the common folder."""
        return {name: version.mtime_ns for name, version in zip(self.files, self._versions, strict=True)}

    @property
    def common_names(self) -> set[str]:
        """Names that exactly one column has in every file."""
        return self._common_names or set()

    @property
    def groups_by_file(self) -> list[range]:
        """Row groups of each file, including those without rows. Defined only for a table of all rows."""
        return [range(first, end) for first, end in itertools.pairwise([*self._first_group, len(self.rows_per_group)])]

    @property
    def is_cached(self) -> bool:
        """True if decoded row groups are kept in memory."""
        return self._cache is not None

    @property
    def bytes_per_row(self) -> int:
        """Bytes of a decoded row, before `prepare`. Columns that read parts of one vector share all of its values."""
        widths = {column.name: self._dtypes[key].itemsize * (column.width or 1) for key, column in self.columns.items()}
        return sum(widths.values()) + self.encoded_bytes_per_row

    @property
    def encoded_bytes_per_row(self) -> int:
        """Bytes of the columns of a row that the encoder returns."""
        return 0 if self._encoder is None else self._encoder.bytes_per_row

    def decode(self, group: int) -> RowGroup:
        """Decode one row group.

        Returns:
          The columns that `prepare` returns. Without `prepare`, the columns of the table, each [rows] or
          [rows, num_read], with the same dtype in all row groups, and those of the encoder. The arrays may be
          read-only.

        Raises:
          DataError: the row group cannot be read, or it has a value that its column does not allow.
        """
        if self._cache is not None and group in self._cache:
            return self._cache[group]
        stored = self._decode(group + self._groups_before)
        begin = self._rows_before if group == 0 else 0
        stored = {key: numbers[begin : begin + self.rows_per_group[group]] for key, numbers in stored.items()}
        if self._prepare is not None:
            stored = self._prepare(stored)
        if self._cache is not None:
            self._cache[group] = stored
        return stored

    def _decode(self, group: int) -> RowGroup:
        """Decode and check all rows of a row group; `group` counts the row groups of all files."""
        file_index = bisect.bisect_right(self._first_group, group) - 1
        path = self._paths[file_index]
        group_in_file = group - self._first_group[file_index]
        location = f"{path}: row group {group_in_file}"
        names = list(dict.fromkeys(column.name for column in self.columns.values()))
        names += [] if self._encoder is None else [name for name in self._encoder.columns if name not in names]
        try:
            # The footer in memory would be wrong for a changed file, and reading with it would return garbage.
            if _version(path) != self._versions[file_index]:
                raise DataError(
                    f"{location}: the file has changed since it was opened; do not modify files while a run reads them"
                )
            footer = self._footer(path)
            chunks = footer.row_group(group_in_file)
            dictionaries = [leaf for leaf in self._dictionaries[file_index] if has_repeats(chunks.column(leaf))]
            with open_parquet(path, footer, dictionaries) as file:
                table = file.read_row_group(group_in_file, columns=names, use_threads=False)
        except READ_ERRORS as error:
            raise DataError(f"{location}: cannot read this row group: {error}") from error
        stored = {
            key: checked_values(table.column(c.name), table.schema.field(c.name), c, location)
            for key, c in self.columns.items()
        }
        with np.errstate(over="ignore"):  # doubles beyond float32 become infinite, which models treat as missing
            stored = {key: numbers.astype(self._dtypes[key], copy=False) for key, numbers in stored.items()}
        if self._check is not None and (bad := self._check(stored)) is not None:
            raise DataError(bad_value(location, self.columns[bad.key], bad.row, bad.problem))
        return stored if self._encoder is None else {**stored, **self._encoder.encode(table, location)}

    def _add_names(self, path: Path, schema: pa.Schema) -> None:
        self.column_names.update(schema.names)
        for field in schema:
            self.column_types.setdefault(field.name, {}).setdefault(field.type, path)
        unique = {name for name, number in collections.Counter(schema.names).items() if number == 1}
        self._common_names = unique if self._common_names is None else self._common_names & unique

    def _open(self, path: Path) -> pq.FileMetaData:
        try:
            self._versions.append(_version(path))
            metadata = self._footer(path)
            # Not metadata.schema: the two refer to each other, so the footer would stay in memory.
            with open_parquet(path, metadata) as file:
                schema = file.schema_arrow
        except READ_ERRORS as error:
            raise DataError(f"{path}: cannot read this file as Parquet: {error}") from error
        if self._schema is None or not schema.equals(self._schema):  # most files have the schema of the one before
            self._schema = schema
            self._add_names(path, schema)
        for key, column in self.columns.items():
            if schema.get_field_index(column.name) < 0:
                raise DataError(f"{path}: {no_column(column.name, schema.names)}")
            try:
                dtype = stored_dtype(schema.field(column.name), column)
            except ValueError as error:
                raise DataError(f"{path}: column '{column.name}': {error}") from error
            # If files store a column with different dtypes, all are converted to its dtype in batches.
            if self._dtypes.setdefault(key, dtype) != dtype:
                self._dtypes[key] = numpy_dtype(column.dtype)
        self._dictionaries.append(self._check_encoder(path, schema))
        return metadata

    def _check_encoder(self, path: Path, schema: pa.Schema) -> list[int]:
        """Check the columns that the encoder reads, and return the leaf columns that dictionaries suit."""
        if self._encoder is None:
            return []
        try:
            names = self._encoder.check(schema)
        except ValueError as error:
            raise DataError(f"{path}: {error}") from error
        leaves = first_leaves(schema)
        return [leaves[name] for name in names]


def _footer_bytes(path: Path) -> bytes:
    """Return the footer of a Parquet file: its length is stored in the four bytes before the final magic number."""
    with path.open("rb") as file:
        file.seek(-8, os.SEEK_END)
        length = int.from_bytes(file.read(4), "little")
        file.seek(-8 - length, os.SEEK_END)
        return file.read(length)


def _version(path: Path) -> _Version:
    status = path.stat()
    return _Version(status.st_ino, status.st_size, status.st_mtime_ns)
