"""Reads the user's files into staged rows: Parquet with the types as found, CSV as text."""

import bisect
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa

from common.reader.files import DataError
from projects.home.recap.tools.prepare import csv_file, parquet_files
from projects.home.recap.tools.prepare.columns import IngestOptions
from projects.home.recap.tools.prepare.csv_format import sniff
from projects.home.recap.tools.prepare.input_files import InputFiles
from projects.home.recap.tools.prepare.names import clean_names
from projects.home.recap.tools.prepare.row_writer import RowWriter


@dataclass(frozen=True)
class RawColumn:
    """A column as found.

    Attributes:
      name: name, made unique.
      found: type for messages.
      type: type of the staged column; None if the column is not staged.
      is_typed: False for text whose type is to be decided: that of CSV files and of names of folders.
    """

    name: str
    found: str
    type: pa.DataType | None
    is_typed: bool


@dataclass(frozen=True)
class Rows:
    """The rows of all files, with the columns c0, c1, ... by position in `columns`, and ROW.

    Attributes:
      files: staged files.
      num_rows: number of rows.
      columns: the columns.
      notes: sentences about what was changed.
      place_of: returns the file of a row and the line in it, for messages.
    """

    files: tuple[Path, ...]
    num_rows: int
    columns: tuple[RawColumn, ...]
    notes: tuple[str, ...]
    place_of: Callable[[int], str]


@dataclass(frozen=True)
class InputTable:
    """The table in the user's files, whose rows are not yet read.

    Attributes:
      inputs: the files.
      columns: the columns, those of names of folders last.
      partition: names of the latter.
      notes: sentences about what was changed.
      read: yields the rows of a file, by number, with the columns that it has and that can be staged.
      place_of: returns the place of a row of a file in it, for messages.
    """

    inputs: InputFiles
    columns: tuple[RawColumn, ...]
    partition: tuple[str, ...]
    notes: tuple[str, ...]
    read: Callable[[int, Callable[[int], object]], Iterator[pa.RecordBatch]]
    place_of: Callable[[int, int], str]


def open_table(inputs: InputFiles, options: IngestOptions) -> InputTable:
    """Return the table in files, of which only the beginning or the footer is read.

    Raises:
      DataError: a file cannot be read, or the files do not have the same columns.
    """
    table = _csv_table(inputs, options) if inputs.format == "csv" else _parquet_table(inputs)
    names = {column.name for column in table.columns}
    partition = tuple(name for name in inputs.files[0].partition if name not in names)
    columns = (*table.columns, *(RawColumn(name, "name of a folder", pa.string(), False) for name in partition))
    return replace(table, columns=columns, partition=partition)


def read_rows(table: InputTable, folder: Path, progress: Callable[[int], object]) -> Rows:
    """Write the rows of a table to a new directory.

    Args:
      table: the table.
      folder: directory to create.
      progress: receives the number of bytes of the files that were read since the last call.

    Raises:
      DataError: a file cannot be read, or there are no rows.
    """
    inputs = table.inputs
    schema = pa.schema([(f"c{i}", column.type) for i, column in enumerate(table.columns) if column.type is not None])
    starts = []
    with RowWriter(folder, schema) as writer:
        for index, file in enumerate(inputs.files):
            starts.append(writer.num_rows)
            for batch in table.read(index, progress):
                constants = [
                    pa.repeat(pa.scalar(file.partition[name], pa.string()), batch.num_rows) for name in table.partition
                ]
                writer.write([*batch.columns, *constants], batch.num_rows)
    if writer.num_rows == 0:
        others = f" and {len(inputs.files) - 1} more file(s)" if len(inputs.files) > 1 else ""
        raise DataError(f"{inputs.files[0].path}{others}: there are columns, but no rows. Give files with rows")

    def place_of(row: int) -> str:
        index = bisect.bisect_right(starts, row) - 1
        return f"{inputs.files[index].path}, {table.place_of(index, row - starts[index])}"

    return Rows(tuple(writer.files), writer.num_rows, table.columns, table.notes, place_of)


def _csv_table(inputs: InputFiles, options: IngestOptions) -> InputTable:
    paths = [file.path for file in inputs.files]
    formats = [sniff(path, options) for path in paths]
    for path, csv_format in zip(paths, formats, strict=True):
        if options.names is None and csv_format.fields != formats[0].fields:
            pairs = itertools.zip_longest(formats[0].fields, csv_format.fields)
            one, two = next(pair for pair in pairs if pair[0] != pair[1])
            raise DataError(
                f"{path}, line 1: the columns differ from those of {paths[0]}: {two!r} stands in place of {one!r}"
            )
        if csv_format.delimiter != formats[0].delimiter:
            raise DataError(
                f"{path}: the delimiter is {csv_format.delimiter!r}, but that of {paths[0]} is "
                f"{formats[0].delimiter!r}. Give --delimiter, or files of one format"
            )
    names, notes = clean_names(formats[0].fields if options.names is None else options.names)
    return InputTable(
        inputs,
        tuple(RawColumn(name, "text", pa.string(), False) for name in names),
        (),
        tuple(notes),
        lambda index, progress: csv_file.read_batches(paths[index], formats[index], progress),
        lambda index, row: f"line {csv_file.line_of(paths[index], formats[index], row)}",
    )


def _parquet_table(inputs: InputFiles) -> InputTable:
    paths = [file.path for file in inputs.files]
    table = parquet_files.read_schemas(paths)
    return InputTable(
        inputs,
        tuple(RawColumn(column.name, column.found, column.type, True) for column in table.columns),
        (),
        table.notes,
        lambda index, progress: parquet_files.read_batches(paths[index], table.columns, progress),
        lambda _, row: f"row {row + 1}",
    )
