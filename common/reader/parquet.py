"""Parquet files as one table of row groups, each decoded into numpy arrays and checked.

What metadata can show (a missing column, a wrong type or width, no rows) is checked when a table is opened; the rest
(a null, a list of another width, a value that a column may not hold) when its row group is decoded. In which order
rows are read is not decided here (order.py), nor how they get into batches (reader.py).
"""

import bisect
import functools
import hashlib
import os
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from common.reader.column import Column, bad_value, checked_values, numpy_dtype, stored_dtype
from common.reader.files import UNREADABLE, DataError, Files

RowGroup = dict[Hashable, NDArray[Any]]
"""Columns of a row group as they are stored, by key, each [rows] or [rows, width]."""


class BadValue(NamedTuple):
    """A mistake in the column that has this key, and what is wrong there."""

    key: Hashable
    row: int
    problem: str


# Footers that are kept: of a file with thousands of row groups it takes longer to read one than to decode a row group.
_FOOTERS = 64


class _Version(NamedTuple):
    """What shows that a file is another than it was."""

    inode: int
    size: int
    mtime_ns: int


class ParquetTable:
    """The row groups of all files, in the order of the files. Threads may decode at the same time."""

    def __init__(
        self,
        files: Files,
        columns: Mapping[Hashable, Column],
        *,
        rows: Callable[[int], range] | None = None,
        check: Callable[[RowGroup], BadValue | None] | None = None,
        prepare: Callable[[RowGroup], RowGroup] | None = None,
        cache: bool = False,
    ) -> None:
        """Opens every file's footer and checks it.

        Args:
          files: what to read.
          columns: what to read, by the name that it gets.
          rows: makes of the number of rows in all files the range of those that the table has, in steps of 1, at least
            one; row groups outside are not decoded. None: all.
          check: looks for a mistake that takes more than one column to see in the columns of a row group, all of its
            rows, [rows] or [rows, num_read]; it may not change them.
          prepare: makes of a row group's columns those that batches are made of; it may add, replace and remove, but
            not change the arrays it is given.
          cache: keep what was decoded in memory.

        Raises:
          DataError: a file can't be read, lacks a column, has it in another type or width, or there are no rows.
        """
        self.inputs = files.description
        self.columns: Mapping[Hashable, Column] = dict(columns)
        self._paths = files.paths
        self._check = check
        self._prepare = prepare
        self._cache: dict[int, RowGroup] | None = {} if cache else None
        self._footer = functools.lru_cache(maxsize=_FOOTERS)(pq.read_metadata)
        self._versions: list[_Version] = []
        self._first_group: list[int] = []
        self._dtypes: dict[Hashable, np.dtype[Any]] = {}
        self.column_names: set[str] = set()
        """Of all columns of the files."""
        in_files: list[int] = []
        digest = hashlib.blake2b(digest_size=16)
        folder = os.path.commonpath([path.parent for path in self._paths])
        for path in self._paths:
            metadata = self._open(path)
            self._first_group.append(len(in_files))
            in_files.extend(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))
            name = os.fsencode(path.relative_to(folder))
            try:
                digest.update(name + b"\n" + _footer_bytes(path))
            except OSError as error:
                raise DataError(f"{path}: can't be read: {error}") from error
        ends = np.cumsum(np.asarray(in_files, dtype=np.int64))
        num_rows = int(ends[-1]) if len(ends) else 0
        if num_rows == 0:
            raise DataError(f"{self.inputs}: {len(self._paths)} file(s), but not one row")
        # Footers tell sizes, statistics, and of our own files a digest of their values.
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
        # Of the first row group; that rows of the last are left out, their number tells.
        self._rows_before = chosen.start - int(starts[first])

    @property
    def num_files(self) -> int:
        """That the rows are in."""
        return len(self._paths)

    @property
    def bytes_per_row(self) -> int:
        """Of a decoded row, before `prepare`."""
        return sum(self._dtypes[key].itemsize * (column.num_read or 1) for key, column in self.columns.items())

    def decode(self, group: int) -> RowGroup:
        """Reads one row group.

        Returns:
          the columns that `prepare` returns; without it those of the table, each [rows] or [rows, num_read], in one
          dtype in all row groups. They may be read-only.

        Raises:
          DataError: the row group can't be read, or holds a value that its column may not hold.
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
        """All rows of a row group of the files."""
        file_index = bisect.bisect_right(self._first_group, group) - 1
        path = self._paths[file_index]
        group_in_file = group - self._first_group[file_index]
        place = f"{path}: row group {group_in_file}"
        names = list(dict.fromkeys(column.name for column in self.columns.values()))
        try:
            # With another file's footer garbage would be read.
            if _version(path) != self._versions[file_index]:
                raise DataError(f"{place}: the file has changed; leave files as they are while they are read")
            with pq.ParquetFile(path, metadata=self._footer(path)) as file:
                table = file.read_row_group(group_in_file, columns=names, use_threads=False)
        except UNREADABLE as error:
            raise DataError(f"{place} can't be read: {error}") from error
        stored = {
            key: checked_values(table.column(c.name), table.schema.field(c.name), c, place)
            for key, c in self.columns.items()
        }
        with np.errstate(over="ignore"):  # a double beyond float32 becomes infinite, which models treat as missing
            stored = {key: numbers.astype(self._dtypes[key], copy=False) for key, numbers in stored.items()}
        if self._check is not None and (bad := self._check(stored)) is not None:
            raise DataError(bad_value(place, self.columns[bad.key], bad.row, bad.problem))
        return stored

    def _open(self, path: Path) -> pq.FileMetaData:
        try:
            self._versions.append(_version(path))
            metadata = self._footer(path)
            schema = metadata.schema.to_arrow_schema()
        except UNREADABLE as error:
            raise DataError(f"{path}: can't be read as Parquet: {error}") from error
        self.column_names.update(schema.names)
        for key, column in self.columns.items():
            if schema.get_field_index(column.name) < 0:
                found = ", ".join(sorted(schema.names)) or "none"
                raise DataError(f"{path}: no column '{column.name}' (or several); its columns: {found}")
            try:
                dtype = stored_dtype(schema.field(column.name), column)
            except ValueError as error:
                raise DataError(f"{path}: column '{column.name}': {error}") from error
            # Files that differ are brought together in what a batch holds anyway.
            if self._dtypes.setdefault(key, dtype) != dtype:
                self._dtypes[key] = numpy_dtype(column.dtype)
        return metadata


def _footer_bytes(path: Path) -> bytes:
    """All that stands behind the data."""
    with path.open("rb") as file:
        file.seek(-8, os.SEEK_END)
        length = int.from_bytes(file.read(4), "little")
        file.seek(-8 - length, os.SEEK_END)
        return file.read(length)


def _version(path: Path) -> _Version:
    status = path.stat()
    return _Version(status.st_ino, status.st_size, status.st_mtime_ns)
