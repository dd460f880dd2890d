"""Reads Parquet files of one table as columns of the same names and types."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pyarrow.types as pt

from common.reader.files import READ_ERRORS, DataError
from common.reader.parquet_file import open_parquet
from projects.home.recap.tools.prepare.names import clean_names

_BATCH_ROWS, _BATCH_BYTES = 2**16, 2**24


@dataclass(frozen=True)
class ParquetColumn:
    """A column of all files.

    Attributes:
      name: name of the column, made unique.
      found: its type, for messages.
      type: type to read it as; None if it cannot be staged.
    """

    name: str
    found: str
    type: pa.DataType | None


@dataclass(frozen=True)
class ParquetTable:
    """The columns of several files, in the order of the first one, and what was changed about their names."""

    columns: tuple[ParquetColumn, ...]
    notes: tuple[str, ...]


def read_schemas(paths: Sequence[Path]) -> ParquetTable:
    """Return the columns of files of one table.

    Integers of different widths are read as the widest, and integers with floats as float64.

    Raises:
      DataError: a file cannot be read, lacks a column, has further ones, or has another type for one.
    """
    names, notes = _names(paths[0])
    found = [str(field.type) for field in _schema(paths[0])]
    types = [staged_type(field.type) for field in _schema(paths[0])]
    for path in paths[1:]:
        others, _ = _names(path)
        if missing := [name for name in names if name not in others]:
            raise DataError(f"{path} lacks the column {missing[0]!r}, which {paths[0]} has. Give files of one table")
        if more := [name for name in others if name not in names]:
            raise DataError(f"{paths[0]} lacks the column {more[0]!r}, which {path} has. Give files of one table")
        fields = dict(zip(others, _schema(path), strict=True))
        for index, name in enumerate(names):
            fits, types[index] = _common(types[index], staged_type(fields[name].type))
            if not fits:
                raise DataError(
                    f"the column {name!r} is {found[index]} in {paths[0]}, but {fields[name].type} in {path}. Write "
                    "it with one type"
                )
    columns = map(ParquetColumn, names, found, map(_without_null, types))
    return ParquetTable(tuple(columns), tuple(notes))


def read_batches(
    path: Path, columns: Sequence[ParquetColumn], progress: Callable[[int], object]
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a file, with the columns that can be staged, as c0, c1, ... by their positions in `columns`.

    Args:
      path: the file.
      columns: the columns of the table.
      progress: receives the number of bytes that were read since the last call, of those of the file.

    Raises:
      DataError: the file is damaged, or a number does not fit into the common type of the files.
    """
    try:
        with open_parquet(path) as file:
            names, _ = clean_names(file.schema_arrow.names)
            positions = {name: position for position, name in enumerate(names)}
            size, num_rows = path.stat().st_size, max(1, file.metadata.num_rows)
            for batch in file.iter_batches(_batch_rows(file.metadata)):
                yield pa.RecordBatch.from_arrays(
                    [
                        _cast(path, column, batch.column(positions[column.name]))
                        for column in columns
                        if column.type is not None
                    ],
                    [f"c{index}" for index, column in enumerate(columns) if column.type is not None],
                )
                progress(size * batch.num_rows // num_rows)
    except READ_ERRORS as error:
        raise DataError(f"{path}: cannot read this file: {error}") from error


def staged_type(found: pa.DataType) -> pa.DataType | None:
    """Return the type to stage a column as: its own, without dictionaries and lengths; None if no kind reads it."""
    if isinstance(found, pa.BaseExtensionType):
        return staged_type(found.storage_type)
    if pt.is_dictionary(found):
        return staged_type(found.value_type)
    if pt.is_list(found) or pt.is_large_list(found) or pt.is_fixed_size_list(found):
        element = staged_type(found.value_type)
        return None if element is None or pt.is_nested(element) else pa.list_(element)
    if pt.is_string(found) or pt.is_large_string(found):
        return pa.string()
    if pt.is_float16(found):
        return pa.float32()
    if pt.is_date(found):
        return pa.date32()
    if pt.is_decimal(found):
        return pa.decimal128(found.precision, found.scale) if found.precision <= 38 else None
    keeps = pt.is_integer, pt.is_floating, pt.is_boolean, pt.is_timestamp, pt.is_null
    return found if any(keep(found) for keep in keeps) else None


def _common(first: pa.DataType | None, other: pa.DataType | None) -> tuple[bool, pa.DataType | None]:
    """Return whether values of two types fit into one, and that type."""
    if first == other or (other is not None and pt.is_null(other)):
        return True, first
    if first is not None and pt.is_null(first):
        return True, other
    if first is None or other is None:
        return False, None
    if pt.is_list(first) and pt.is_list(other):
        fits, element = _common(first.value_type, other.value_type)
        return fits, pa.list_(element) if fits else None
    numeric = all(pt.is_integer(each) or pt.is_floating(each) for each in (first, other))
    same_kind = (pt.is_decimal(first) and pt.is_decimal(other)) or (
        pt.is_timestamp(first) and pt.is_timestamp(other) and (first.tz is None) == (other.tz is None)
    )
    if not numeric and not same_kind:
        return False, None
    if pt.is_timestamp(first):
        return True, pa.timestamp("ns" if "ns" in (first.unit, other.unit) else "us", first.tz)
    if numeric and pt.is_floating(first) != pt.is_floating(other):
        return True, pa.float64()
    fields = [pa.schema([("c", each)]) for each in (first, other)]
    return True, pa.unify_schemas(fields, promote_options="permissive").field(0).type


def _without_null(staged: pa.DataType | None) -> pa.DataType | None:
    """Return text for a column without any value, and lists of text for a column of empty lists."""
    if staged is not None and pt.is_list(staged):
        return pa.list_(_without_null(staged.value_type))
    return pa.string() if staged is not None and pt.is_null(staged) else staged


def _names(path: Path) -> tuple[list[str], list[str]]:
    return clean_names(_schema(path).names)


def _schema(path: Path) -> pa.Schema:
    try:
        with open_parquet(path) as file:
            return file.schema_arrow
    except READ_ERRORS as error:
        raise DataError(f"{path}: cannot read this file as Parquet: {error}") from error


def _cast(path: Path, column: ParquetColumn, values: pa.Array) -> pa.Array:
    if isinstance(values, pa.ExtensionArray):
        values = values.storage
    try:
        return pc.cast(values, column.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(f"{path}: the column {column.name!r} cannot be read as {column.type}: {error}") from error


def _batch_rows(metadata: pq.FileMetaData) -> int:
    """Return the number of rows to decode at a time."""
    sizes = (metadata.row_group(index).total_byte_size for index in range(metadata.num_row_groups))
    bytes_per_row: int = max(1, sum(sizes) // max(1, metadata.num_rows))
    return max(1, min(_BATCH_ROWS, _BATCH_BYTES // bytes_per_row))
