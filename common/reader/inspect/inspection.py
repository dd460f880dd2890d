"""Inspects the contents of Parquet files: row groups, statistics of columns, and errors that would stop a run.

Holds one column of one row group in memory at a time. It does not know the purpose of a column, which only the
configuration of a run specifies. report.py formats the result.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from common.reader import vectors
from common.reader.files import READ_ERRORS, Files
from common.reader.inspect.column_statistics import ColumnStatistics
from common.reader.parquet_file import first_leaves, has_checksum, open_parquet

# Number of findings that are kept; any others are only counted.
MOST_FINDINGS = 100
# A row group of at least this decoded size, in bytes, causes a warning.
LARGE_ROW_GROUP = 256 * 2**20
# An integer column is assumed to be a label if it has both zeros and ones, and they make up at least this share of it.
_LABEL_SHARE = 0.9


@dataclass
class Findings:
    """Counts messages and keeps the first MOST_FINDINGS of them."""

    count: int = 0
    kept: list[str] = field(default_factory=list)

    def add(self, message: str) -> None:
        self.count += 1
        if len(self.kept) < MOST_FINDINGS:
            self.kept.append(message)


class ValueShape(NamedTuple):
    """Describes how a column stores numbers.

    Attributes:
      kind: "integers", which includes booleans, or "numbers".
      is_vector: whether a row has several values.
      width: width of a vector, if its type specifies it.
      binary: format of vectors that are stored as fixed-size binary; None for other columns.
    """

    kind: str
    is_vector: bool
    width: int | None
    binary: vectors.VectorFormat | None = None


class RowGroupSize(NamedTuple):
    """Size of a row group.

    Attributes:
      rows: number of rows.
      stored: compressed size in bytes of the columns that are decoded, which are the numeric ones.
      decoded: size in bytes of the same columns once decoded, in their stored dtypes.
      location: file and row group, for messages.
    """

    rows: int
    stored: int
    decoded: int
    location: str


@dataclass
class InspectedColumn:
    """A column of the first file, with its values in all files.

    Attributes:
      name: name of the column in the files.
      type: stored type, without the width of a vector.
      shape: how the column stores numbers; None if it holds no numbers and is not read.
      width: values per row of a vector; None for a plain column, or if no row was read yet.
      statistics: statistics of the values that are not null.
      ones: number of values that are 1, in a plain column of integers.
      others: number of values that are neither 0 nor 1, in a plain column of integers.
      first_other: first of those values and its location; empty if there is none.
      is_mixed: whether some files store integers and others floats.
    """

    name: str
    type: str
    shape: ValueShape | None
    width: int | None
    statistics: ColumnStatistics = field(default_factory=ColumnStatistics)
    ones: int = 0
    others: int = 0
    first_other: str = ""
    is_mixed: bool = False

    @property
    def is_flag(self) -> bool:
        """Return whether the column can be a label: a plain column of integers or booleans that are all 0 or 1."""
        has_integers = self.shape is not None and self.shape.kind == "integers" and not self.shape.is_vector
        return has_integers and not self.is_mixed and self.statistics.count > 0 and self.others == 0


@dataclass
class Inspection:
    """The result of inspecting a set of files.

    Attributes:
      files: the inspected files.
      unreadable: number of files whose footer cannot be read.
      columns: columns of the first readable file, by name.
      row_groups: sizes of the row groups of all files, in order.
      compressions: codecs of the decoded columns.
      unprotected: number of files whose pages have no checksums, so that some damage cannot be detected.
      errors: problems that stop a run that reads the file or column.
      warnings: other notable findings.
    """

    files: Files
    unreadable: int = 0
    columns: dict[str, InspectedColumn] = field(default_factory=dict)
    row_groups: list[RowGroupSize] = field(default_factory=list)
    compressions: set[str] = field(default_factory=set)
    unprotected: int = 0
    errors: Findings = field(default_factory=Findings)
    warnings: Findings = field(default_factory=Findings)

    @property
    def num_rows(self) -> int:
        """Number of rows of all readable files."""
        return sum(group.rows for group in self.row_groups)


def inspect(files: Files, progress: Callable[[int], object] | None = None) -> Inspection:
    """Read all files. A problem in one of them becomes an error or a warning, and the others are still read.

    Args:
      files: the files to inspect.
      progress: called after each row group with its number of rows.
    """
    inspection = Inspection(files)
    for path in files.paths:
        try:
            with open_parquet(path) as file:
                _FileInspection(inspection, path, file).run(progress or (lambda _: None))
        except READ_ERRORS as error:
            inspection.unreadable += 1
            inspection.errors.add(f"{path}: cannot read this file as Parquet: {error}")
    if inspection.num_rows == 0:
        inspection.errors.add(f"{files.description}: {len(files.paths)} file(s) with no rows")
    for column in inspection.columns.values():
        _check_label(column, inspection.errors)
        _warn_about_empty_lists(column, inspection.warnings)
    _warn_about_large_row_groups(inspection)
    return inspection


class _FileInspection:
    """Adds one file to an inspection.

    A problem in many rows of a column becomes one finding, with the number of rows and the first row.
    """

    def __init__(self, inspection: Inspection, path: Path, file: pq.ParquetFile) -> None:
        self._inspection = inspection
        self._path = path
        self._file = file
        # By column name and problem: location of the first row, and number of rows.
        self._bad_rows: dict[tuple[str, str], tuple[str, int]] = {}

    def run(self, progress: Callable[[int], object]) -> None:
        schema, metadata = self._file.schema_arrow, self._file.metadata
        shapes = dict(self._readable_columns(schema))
        leaves = first_leaves(schema)
        is_protected: bool | None = None
        for group in range(metadata.num_row_groups):
            sizes = metadata.row_group(group)
            stored = decoded = 0
            for name, shape in shapes.items():
                size = self._read(group, sizes.num_rows, name, shape)
                if size is None or sizes.num_rows == 0:
                    continue
                # After a successful read only: for damaged metadata, such as an unknown codec, these calls end the
                # process, while decoding raises an exception.
                chunk = sizes.column(leaves[name])
                stored, decoded = stored + chunk.total_compressed_size, decoded + size
                self._inspection.compressions.add(chunk.compression)
                if is_protected is None:
                    is_protected = has_checksum(self._path, chunk)
                    self._inspection.unprotected += not is_protected
            location = f"{self._path}: row group {group}"
            self._inspection.row_groups.append(RowGroupSize(sizes.num_rows, stored, decoded, location))
            progress(sizes.num_rows)
        for (name, problem), (first, count) in self._bad_rows.items():
            rows = "1 row, at" if count == 1 else f"{count:,} rows, first at"
            self._add_error(f"column '{name}': found {problem} in {rows} {first} (counted from 0)")

    def _add_error(self, problem: str) -> None:
        self._inspection.errors.add(f"{self._path}: {problem}")

    def _add_warning(self, problem: str) -> None:
        self._inspection.warnings.add(f"{self._path}: {problem}")

    def _readable_columns(self, schema: pa.Schema) -> Iterator[tuple[str, ValueShape]]:
        """Yield the numeric columns that a run can read together with those of the first file."""
        is_first_file = not self._inspection.columns
        names = list(dict.fromkeys(schema.names))
        for name in names:
            if schema.get_field_index(name) < 0:
                self._add_error(f"more than one column '{name}'")
                continue
            stored = schema.field(name)
            try:
                shape = _shape_of(stored)
            except ValueError as error:
                self._add_error(f"column '{name}': {error}")
                if is_first_file:
                    self._inspection.columns[name] = InspectedColumn(name, str(stored.type), None, None)
                continue
            if is_first_file:
                self._add_column(stored, shape)
            elif not self._matches_first_file(stored, shape):
                continue
            if shape is not None:
                yield name, shape
        for name in [name for name in self._inspection.columns if name not in names]:
            self._add_error(f"no column '{name}', but the first file has one")

    def _add_column(self, stored: pa.Field, shape: ValueShape | None) -> None:
        """Add a column of the first file."""
        width = shape.width if shape is not None else None
        column = InspectedColumn(stored.name, _describe_type(stored, shape), shape, width)
        self._inspection.columns[stored.name] = column
        if shape is None and pa.types.is_fixed_size_binary(stored.type):
            problem = "fixed-size binary without dtype and width in the field's metadata"
            self._add_warning(f"column '{stored.name}': {problem}; a run cannot read it as a vector")

    def _matches_first_file(self, stored: pa.Field, shape: ValueShape | None) -> bool:
        """Compare a column with that of the first file, and return whether a run can read both."""
        column = self._inspection.columns.get(stored.name)
        if column is None:
            self._add_error(f"column '{stored.name}' is not in the first file")
            return False
        described, width = _describe_type(stored, shape), shape.width if shape is not None else None
        if not _have_same_shape(shape, column):
            here, first = _with_width(described, width), _with_width(column.type, column.width)
            self._add_error(f"column '{stored.name}': found {here}, but {first} in the first file")
            return False
        if described != column.type:
            mixed = shape is not None and column.shape is not None and shape.kind != column.shape.kind
            column.is_mixed |= mixed
            limits = " as floats, but not as ids or labels" if mixed else ""
            difference = f"found {described}, but {column.type} in the first file"
            self._add_warning(f"column '{stored.name}': {difference}; a run can read both{limits}")
        return True

    def _read(self, group: int, num_rows: int, name: str, shape: ValueShape) -> int | None:
        """Add a column of a row group to its statistics.

        Returns:
          Decoded bytes of its values, or None if it cannot be decoded.
        """
        try:
            values = self._file.read_row_group(group, columns=[name], use_threads=False).column(name)
        except READ_ERRORS as error:
            self._add_error(f"row group {group}: cannot decode column '{name}': {error}")
            return None
        if len(values) != num_rows:
            self._add_error(f"row group {group}: column '{name}' has {len(values):,} of the {num_rows:,} rows")
            return None
        column, first_row, size = self._inspection.columns[name], 0, 0
        for chunk in values.chunks:
            numbers = self._numbers(chunk, column, shape, group, first_row)
            column.statistics.add(numbers)
            if shape.kind == "integers" and not shape.is_vector:
                self._count_flags(numbers, column, group, first_row)
            first_row += len(chunk)
            size += numbers.nbytes
        return size

    def _numbers(
        self, array: pa.Array, column: InspectedColumn, shape: ValueShape, group: int, first_row: int
    ) -> NDArray[Any]:
        """Return the values that are not null, and note the rows with a null or a list of a different length."""
        if array.null_count:
            nulls = array.is_null().to_numpy(zero_copy_only=False)
            self._note_bad_rows(column, "null", group, first_row + np.flatnonzero(nulls))
        if shape.binary is not None:
            array = array.drop_null()
            return _as_numbers(vectors.to_numpy(array, shape.binary)) if len(array) else np.empty(0)
        if not shape.is_vector:
            return _as_numbers(array.drop_null().to_numpy(zero_copy_only=False))
        if shape.width is None:
            self._check_lengths(array, column, group, first_row)
        values = array.flatten()
        if values.null_count:
            nulls = values.is_null().to_numpy(zero_copy_only=False)
            rows = np.unique(pc.list_parent_indices(array).to_numpy()[nulls])
            self._note_bad_rows(column, "null in a list", group, first_row + rows)
        return _as_numbers(values.drop_null().to_numpy(zero_copy_only=False))

    def _check_lengths(self, array: pa.Array, column: InspectedColumn, group: int, first_row: int) -> None:
        """Note the rows whose list differs in length from the first row of all files."""
        lengths = pc.list_value_length(array).fill_null(-1).to_numpy(zero_copy_only=False)
        if column.width is None and (known := lengths[lengths >= 0]).size:
            column.width = int(known[0])
        for length in np.unique(lengths[(lengths >= 0) & (lengths != column.width)]):
            problem = f"a list of {length} values instead of {column.width}, the width of the first row,"
            self._note_bad_rows(column, problem, group, first_row + np.flatnonzero(lengths == length))

    def _note_bad_rows(self, column: InspectedColumn, problem: str, group: int, rows: NDArray[np.int64]) -> None:
        if len(rows):
            key = column.name, problem
            first, count = self._bad_rows.get(key, (f"row group {group}, row {rows[0]}", 0))
            self._bad_rows[key] = first, count + len(rows)

    def _count_flags(self, numbers: NDArray[Any], column: InspectedColumn, group: int, first_row: int) -> None:
        is_other = (numbers != 0) & (numbers != 1)
        column.ones += int(np.count_nonzero(numbers == 1))
        column.others += int(np.count_nonzero(is_other))
        if column.others and not column.first_other:
            row = int(np.flatnonzero(is_other)[0])
            column.first_other = f"{numbers[row]} at {self._path}: row group {group}, row {first_row + row}"


def _shape_of(stored: pa.Field) -> ValueShape | None:
    """Return how a column stores numbers, or None if it holds none.

    Raises:
      ValueError: the metadata of fixed-size binary is incomplete or contradicts the type.
    """
    if pa.types.is_fixed_size_binary(stored.type):
        if not {b"dtype", b"width"} & (stored.metadata or {}).keys():
            return None
        binary = vectors.vector_format(stored)
        return ValueShape("numbers" if binary.dtype.kind == "f" else "integers", True, binary.width, binary)
    is_fixed = pa.types.is_fixed_size_list(stored.type)
    is_vector = is_fixed or pa.types.is_list(stored.type) or pa.types.is_large_list(stored.type)
    kind = stored.type.value_type if is_vector else stored.type
    width = stored.type.list_size if is_fixed else None
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return ValueShape("integers", is_vector, width)
    return ValueShape("numbers", is_vector, width) if pa.types.is_floating(kind) else None


def _describe_type(stored: pa.Field, shape: ValueShape | None) -> str:
    """Return the stored type without the name of a list's element."""
    if shape is None or not shape.is_vector:
        return str(stored.type)
    if shape.binary is not None:
        return f"fixed_size_binary of {shape.binary.dtype.name}"
    lists = "fixed_size_list" if shape.width is not None else "list"
    return f"{lists} of {stored.type.value_type}"


def _with_width(described: str, width: int | None) -> str:
    return described if width is None else f"{described}[{width}]"


def _have_same_shape(shape: ValueShape | None, column: InspectedColumn) -> bool:
    """Return whether a run can read both this column and that of the first file. It reads integers as floats too."""
    first = column.shape
    if shape is None or first is None:
        return shape is first
    widths_differ = shape.width is not None and column.width is not None and shape.width != column.width
    return shape.is_vector == first.is_vector and not widths_differ


def _as_numbers(numbers: NDArray[Any]) -> NDArray[Any]:
    """Return the values, with booleans as 0 and 1."""
    return numbers.view(np.uint8) if numbers.dtype == bool else numbers


def _check_label(column: InspectedColumn, errors: Findings) -> None:
    count, zeros, ones = column.statistics.count, column.statistics.zeros, column.ones
    if column.others and not column.is_mixed and zeros and ones and zeros + ones >= _LABEL_SHARE * count:
        errors.add(
            f"column '{column.name}': looks like a label, but {column.others:,} of {count:,} values are neither 0 nor "
            f"1; the first is {column.first_other}"
        )


def _warn_about_empty_lists(column: InspectedColumn, warnings: Findings) -> None:
    if column.width == 0 and column.statistics.count == 0:
        warnings.add(f"column '{column.name}': all lists are empty; a run cannot read it as a vector")


def _warn_about_large_row_groups(inspection: Inspection) -> None:
    large = [group for group in inspection.row_groups if group.decoded >= LARGE_ROW_GROUP]
    if large:
        largest = max(large, key=lambda group: group.decoded)
        inspection.warnings.add(
            f"{largest.location} has {largest.rows:,} rows and takes {largest.decoded / 2**20:,.0f} MiB when decoded. "
            f"A run holds at least one row group in memory for each lane that it reads. {len(large):,} row group(s) "
            f"take at least {LARGE_ROW_GROUP // 2**20} MiB; write smaller ones"
        )
