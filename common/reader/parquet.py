"""Parquet files as one table of row groups, each decoded into tensors and checked.

What metadata can show (a missing column, a wrong type or width, no rows) is checked when a table is opened; the rest
(a null, a list of another width, a value that a column may not hold) when its row group is decoded. In which order
rows are read is not decided here (order.py).
"""

import bisect
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from common.reader.files import DataError, Files

Columns = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Column:
    """What is read from one column of the files.

    Attributes:
      name: the column in the file; dots are part of the name.
      dtype: of the decoded tensor; an integer type demands an integer (or boolean) column.
      width: values per row in the file, decoded to [rows, keep]; None: a plain column, decoded to [rows].
      keep: the first so many of a row's values are kept; None: all.
      values: what a value must be: "label" 0 or 1, "weight" finite and >= 0, "probability" 0 <= p <= 1; None: any.
      num_ids: of a list column, position -> n: the values there are ids, 0 <= id < n. None: no position holds ids.
    """

    name: str
    dtype: torch.dtype = torch.float32
    width: int | None = None
    keep: int | None = None
    values: Literal["label", "weight", "probability"] | None = None
    num_ids: Mapping[int, int] | None = None


# A larger weight would be infinite as a float32.
_LARGEST = np.finfo(np.float32).max


class ParquetTable:
    """The row groups of all files, in the order of the files."""

    def __init__(self, files: Files, columns: Mapping[str, Column]) -> None:
        """Opens every file's footer and checks it.

        Args:
          files: what to read.
          columns: what to read, by the name that the decoded tensor gets.

        Raises:
          DataError: a file can't be read, lacks a column, has it in another type or width, or there are no rows.
        """
        self.inputs = files.description
        self._columns = dict(columns)
        self._paths = files.paths
        self._first_group: list[int] = []
        rows: list[int] = []
        digest = hashlib.blake2b(digest_size=16)
        for path in self._paths:
            metadata = self._open(path)
            self._first_group.append(len(rows))
            groups = [metadata.row_group(group) for group in range(metadata.num_row_groups)]
            rows.extend(group.num_rows for group in groups)
            digest.update(repr((path.name, [(g.num_rows, g.total_byte_size) for g in groups])).encode())
        self.rows_per_group = np.asarray(rows, dtype=np.int64)
        self.num_rows = int(self.rows_per_group.sum())
        if self.num_rows == 0:
            raise DataError(f"{self.inputs}: {len(self._paths)} file(s), but not one row")
        self.fingerprint = digest.hexdigest()

    def decode(self, group: int) -> Columns:
        """Reads one row group.

        Returns:
          for each column a tensor [rows] or [rows, keep].

        Raises:
          DataError: the row group can't be read, or holds a value that its column may not hold.
        """
        file_index = bisect.bisect_right(self._first_group, group) - 1
        path = self._paths[file_index]
        group_in_file = group - self._first_group[file_index]
        names = list(dict.fromkeys(column.name for column in self._columns.values()))
        try:
            with pq.ParquetFile(path) as file:
                table = file.read_row_group(group_in_file, columns=names, use_threads=False)
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{path}: row group {group_in_file} can't be read: {error}") from error
        # The file may be another by now.
        self._check_types(path, table.schema)
        if table.num_rows != (before := self.rows_per_group[group]):
            raise DataError(
                f"{path}: row group {group_in_file} has {table.num_rows} rows, {before} when the file was opened; "
                "leave files as they are while they are read"
            )
        place = f"{path}: row group {group_in_file}"
        return {key: _to_tensor(table.column(c.name), c, place) for key, c in self._columns.items()}

    def _open(self, path: Path) -> pq.FileMetaData:
        try:
            with pq.ParquetFile(path) as file:
                metadata, schema = file.metadata, file.schema_arrow
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{path}: can't be read as Parquet: {error}") from error
        self._check_types(path, schema)
        return metadata

    def _check_types(self, path: Path, schema: pa.Schema) -> None:
        for column in self._columns.values():
            if schema.get_field_index(column.name) < 0:
                found = ", ".join(sorted(schema.names)) or "none"
                raise DataError(f"{path}: no column '{column.name}' (or several); its columns: {found}")
            problem = _type_problem(schema.field(column.name).type, column)
            if problem:
                raise DataError(f"{path}: column '{column.name}': {problem}")


def _type_problem(found: pa.DataType, column: Column) -> str | None:
    """What is wrong with a column of type `found`, None where nothing is."""
    is_list = pa.types.is_list(found) or pa.types.is_large_list(found) or pa.types.is_fixed_size_list(found)
    if column.width is None and is_list:
        return f"{found} found, one value a row expected"
    if column.width is not None and not is_list:
        return f"{found} found, lists of {column.width} values expected"
    if pa.types.is_fixed_size_list(found) and found.list_size != column.width:
        return f"lists of {found.list_size} values found, {column.width} expected"
    value_type = found.value_type if is_list else found
    if pa.types.is_integer(value_type) or pa.types.is_boolean(value_type):
        return None
    if not column.dtype.is_floating_point:
        return f"{found} found, integers expected"
    if not pa.types.is_floating(value_type):
        return f"{found} found, numbers expected"
    return None


def _to_tensor(chunks: pa.ChunkedArray, column: Column, place: str) -> torch.Tensor:
    """One column of one row group as a tensor [rows] or [rows, keep]."""
    array = chunks.combine_chunks() if chunks.num_chunks != 1 else chunks.chunk(0)
    if array.null_count:
        row = int(np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False))[0])
        raise DataError(_bad_value(place, column, row, "null found, every row needs a value"))
    if column.width is None:
        values = array
    elif pa.types.is_fixed_size_list(array.type):
        values = array.flatten()
    else:
        lengths = np.diff(array.offsets.to_numpy())
        if (lengths != column.width).any():
            row = int(np.flatnonzero(lengths != column.width)[0])
            problem = f"a list of {lengths[row]} values found, {column.width} expected"
            raise DataError(_bad_value(place, column, row, problem))
        values = array.flatten()
    if values.null_count:
        row = int(np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))[0]) // (column.width or 1)
        raise DataError(_bad_value(place, column, row, "a null among its values, every value is needed"))
    numbers = values.to_numpy(zero_copy_only=False)
    _check_values(numbers, column, place)
    if column.width is not None:
        numbers = numbers.reshape(-1, column.width)[:, : column.keep]
        _check_ids(numbers, column, place)
    numpy_dtype = torch.empty(0, dtype=column.dtype).numpy().dtype
    with np.errstate(over="ignore"):  # a double beyond float32 becomes infinite, which models treat as missing
        # A copy always: arrow's memory is read-only and would outlive its table.
        return torch.from_numpy(np.array(numbers, dtype=numpy_dtype, order="C"))


def _check_values(numbers: np.ndarray[Any, Any], column: Column, place: str) -> None:
    if column.values == "label":
        good, allowed = (numbers == 0) | (numbers == 1), "a label is 0 or 1"
    elif column.values == "weight":
        good, allowed = (numbers >= 0) & (numbers <= _LARGEST), "a weight is not negative and, as a float32, finite"
    elif column.values == "probability":
        good, allowed = (numbers >= 0) & (numbers <= 1), "a probability lies between 0 and 1"
    elif not column.dtype.is_floating_point:
        limits = torch.iinfo(column.dtype)
        good = (numbers >= limits.min) & (numbers <= limits.max)
        allowed = f"numbers from {limits.min} to {limits.max} can be read"
    else:
        return
    if not good.all():
        index = int(np.flatnonzero(~good)[0])
        problem = f"{numbers[index]} found, {allowed}"
        raise DataError(_bad_value(place, column, index // (column.width or 1), problem))


def _check_ids(numbers: np.ndarray[Any, Any], column: Column, place: str) -> None:
    for position, num_ids in (column.num_ids or {}).items():
        ids = numbers[:, position]
        good = (ids >= 0) & (ids < num_ids)
        if not good.all():
            row = int(np.flatnonzero(~good)[0])
            problem = f"{ids[row]} found at position {position}, ids from 0 to {num_ids - 1} can be looked up"
            raise DataError(_bad_value(place, column, row, problem))


def _bad_value(place: str, column: Column, row: int, problem: str) -> str:
    return f"{place}, row {row} (both counted from 0): column '{column.name}': {problem}"
