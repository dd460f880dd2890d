"""Looks at all that Parquet files hold: their row groups, statistics of their columns, and what a run would refuse.

Holds one column of one row group at a time. Does not know what a column is meant for (that is the configuration's), nor
how the findings are shown (inspection_report.py).
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
from common.reader.files import UNREADABLE, Files
from common.reader.inspect.column_statistics import ColumnStatistics

# Findings that are kept; the others are counted.
MOST_FINDINGS = 100
# Decoded bytes of a row group from which on it is remarked upon.
LARGE_ROW_GROUP = 256 * 2**20
# An integer column is taken for a label if it has both 0 and 1, and nothing else in so many of its values.
_LABEL_SHARE = 0.9


@dataclass
class Findings:
    """Messages, of which the first MOST_FINDINGS are kept."""

    count: int = 0
    kept: list[str] = field(default_factory=list)

    def add(self, message: str) -> None:
        self.count += 1
        if len(self.kept) < MOST_FINDINGS:
            self.kept.append(message)


class Layout(NamedTuple):
    """How a column holds numbers."""

    kind: str
    """"integers" (booleans are) or "numbers"."""
    is_vector: bool
    width: int | None
    """Of a vector, where its type tells it."""
    binary: vectors.Vectors | None = None
    """How fixed-size binary is read."""


class RowGroup(NamedTuple):
    """Sizes in rows, and bytes of the columns of numbers that were decoded."""

    rows: int
    stored: int
    decoded: int
    """As the types that they are stored in."""
    place: str


@dataclass
class InspectedColumn:
    """A column of the first file, and what all files have in it.

    Attributes:
      name: in the file.
      type: as stored.
      layout: None: it holds no numbers, and was not read.
      width: values a row; None: one, or not known as no row was read.
      statistics: of the values that are not null.
      ones: of a column of single integers, values that are 1.
      others: of a column of single integers, values that are neither 0 nor 1.
      first_other: the place of the first of them.
      is_mixed: integers in some files, floats in others.
    """

    name: str
    type: str
    layout: Layout | None
    width: int | None
    statistics: ColumnStatistics = field(default_factory=ColumnStatistics)
    ones: int = 0
    others: int = 0
    first_other: str = ""
    is_mixed: bool = False

    @property
    def is_flag(self) -> bool:
        """Whether it can be a label: single integers or booleans, each 0 or 1."""
        has_integers = self.layout is not None and self.layout.kind == "integers" and not self.layout.is_vector
        return has_integers and not self.is_mixed and self.statistics.count > 0 and self.others == 0


@dataclass
class Inspection:
    """What files hold.

    Attributes:
      files: that were looked at.
      unreadable: of them, those whose footer can't be read.
      columns: of the first readable file, by name.
      row_groups: of all files, in order.
      compressions: the codecs of the columns that were decoded.
      refused: what a run that reads the column or the file would refuse.
      remarks: what else deserves a look.
    """

    files: Files
    unreadable: int = 0
    columns: dict[str, InspectedColumn] = field(default_factory=dict)
    row_groups: list[RowGroup] = field(default_factory=list)
    compressions: set[str] = field(default_factory=set)
    refused: Findings = field(default_factory=Findings)
    remarks: Findings = field(default_factory=Findings)

    @property
    def num_rows(self) -> int:
        """Of all readable files."""
        return sum(group.rows for group in self.row_groups)


def inspect(files: Files, progress: Callable[[int], object] | None = None) -> Inspection:
    """Reads all files; what is wrong with one is among the findings, and the others are read all the same.

    Args:
      files: to look at.
      progress: called after each row group with its rows.
    """
    inspection = Inspection(files)
    for path in files.paths:
        try:
            with pq.ParquetFile(path) as file:
                _FileInspection(inspection, path, file).run(progress or (lambda _: None))
        except UNREADABLE as error:
            inspection.unreadable += 1
            inspection.refused.add(f"{path}: can't be read as Parquet: {error}")
    if inspection.num_rows == 0:
        inspection.refused.add(f"{files.description}: {len(files.paths)} file(s), but not one row")
    for column in inspection.columns.values():
        _check_label(column, inspection.refused)
        _remark_on_empty_lists(column, inspection.remarks)
    _remark_on_size(inspection)
    return inspection


class _FileInspection:
    """Adds a file to an inspection. What is wrong in many rows of a column is one finding, with the first of them."""

    def __init__(self, inspection: Inspection, path: Path, file: pq.ParquetFile) -> None:
        self._inspection = inspection
        self._path = path
        self._file = file
        self._wrong_rows: dict[tuple[str, str], tuple[str, int]] = {}

    def run(self, progress: Callable[[int], object]) -> None:
        schema, metadata = self._file.schema_arrow, self._file.metadata
        layouts = {name: layout for name, layout in self._layouts(schema) if layout is not None}
        leaves = _first_leaves(schema)
        for group in range(metadata.num_row_groups):
            sizes = metadata.row_group(group)
            stored = decoded = 0
            for name, layout in layouts.items():
                size = self._read(group, sizes.num_rows, name, layout)
                if size is None or sizes.num_rows == 0:
                    continue
                # Wrong metadata, an unknown codec for one, end the process here; decoding raises.
                chunk = sizes.column(leaves[name])
                stored, decoded = stored + chunk.total_compressed_size, decoded + size
                self._inspection.compressions.add(chunk.compression)
            place = f"{self._path}: row group {group}"
            self._inspection.row_groups.append(RowGroup(sizes.num_rows, stored, decoded, place))
            progress(sizes.num_rows)
        for (name, problem), (first, count) in self._wrong_rows.items():
            rows = "1 row" if count == 1 else f"{count:,} rows, the first"
            self._refuse(f"column '{name}': {problem} in {rows}: {first} (counted from 0)")

    def _refuse(self, problem: str) -> None:
        self._inspection.refused.add(f"{self._path}: {problem}")

    def _layouts(self, schema: pa.Schema) -> Iterator[tuple[str, Layout | None]]:
        """The columns that can be read as those of the first file are."""
        first_file = not self._inspection.columns
        names = list(dict.fromkeys(schema.names))
        for name in names:
            if schema.get_field_index(name) < 0:
                self._refuse(f"several columns '{name}'")
                continue
            found = schema.field(name)
            try:
                layout = _layout_of(found)
            except ValueError as error:
                self._refuse(f"column '{name}': {error}")
                if first_file:
                    self._inspection.columns[name] = InspectedColumn(name, str(found.type), None, None)
                continue
            described, width = _described(found, layout), layout.width if layout is not None else None
            if first_file:
                self._inspection.columns[name] = InspectedColumn(name, described, layout, width)
                if layout is None and pa.types.is_fixed_size_binary(found.type):
                    remark = "fixed-size binary without dtype and width in the field's metadata"
                    self._inspection.remarks.add(
                        f"{self._path}: column '{name}': {remark}: a run can't read it as a vector"
                    )
            elif (column := self._inspection.columns.get(name)) is None:
                self._refuse(f"a column '{name}', which the first file lacks")
                continue
            elif not _alike(layout, column):
                given, first = (_with_width(*of) for of in ((described, width), (column.type, column.width)))
                self._refuse(f"column '{name}': {given}, in the first file {first}")
                continue
            elif described != column.type:
                mixed = layout is not None and column.layout is not None and layout.kind != column.layout.kind
                column.is_mixed |= mixed
                how = "as floats, but not as ids or labels" if mixed else "alike"
                remark = f"{described}, in the first file {column.type}; a run reads both {how}"
                self._inspection.remarks.add(f"{self._path}: column '{name}': {remark}")
            yield name, layout
        for name in [name for name in self._inspection.columns if name not in names]:
            self._refuse(f"no column '{name}', which the first file has")

    def _read(self, group: int, num_rows: int, name: str, layout: Layout) -> int | None:
        """Adds a column of a row group to its statistics.

        Returns:
          the bytes of its values, None where it can't be decoded.
        """
        try:
            values = self._file.read_row_group(group, columns=[name], use_threads=False).column(name)
        except UNREADABLE as error:
            self._refuse(f"row group {group}: column '{name}' can't be decoded: {error}")
            return None
        if len(values) != num_rows:
            self._refuse(f"row group {group}: column '{name}' has {len(values):,} of the {num_rows:,} rows")
            return None
        column, first_row, size = self._inspection.columns[name], 0, 0
        for chunk in values.chunks:
            place = f"row group {group}, row "
            numbers = self._numbers(chunk, column, layout, place, first_row)
            column.statistics.add(numbers)
            if layout.kind == "integers" and not layout.is_vector:
                self._count_flags(numbers, column, place, first_row)
            first_row += len(chunk)
            size += numbers.nbytes
        return size

    def _numbers(
        self, array: pa.Array, column: InspectedColumn, layout: Layout, place: str, first_row: int
    ) -> NDArray[Any]:
        """The values that are not null."""

        def note(problem: str, rows: NDArray[np.int64]) -> None:
            if len(rows):
                first, count = self._wrong_rows.get((column.name, problem), (f"{place}{first_row + rows[0]}", 0))
                self._wrong_rows[column.name, problem] = first, count + len(rows)

        if array.null_count:
            note("null found", np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False)))
        if layout.binary is not None:
            array = array.drop_null()
            return _countable(vectors.to_numpy(array, layout.binary)) if len(array) else np.empty(0)
        if not layout.is_vector:
            return _countable(array.drop_null().to_numpy(zero_copy_only=False))
        if layout.width is None:
            lengths = pc.list_value_length(array).fill_null(-1).to_numpy(zero_copy_only=False)
            if column.width is None and (known := lengths[lengths >= 0]).size:
                column.width = int(known[0])
            for length in np.unique(lengths[(lengths >= 0) & (lengths != column.width)]):
                problem = f"a list of {length} values, {column.width} in the first row of all,"
                note(problem, np.flatnonzero(lengths == length))
        values = array.flatten()
        if values.null_count:
            nulls = values.is_null().to_numpy(zero_copy_only=False)
            note("a null among the values", np.unique(pc.list_parent_indices(array).to_numpy()[nulls]))
        return _countable(values.drop_null().to_numpy(zero_copy_only=False))

    def _count_flags(self, numbers: NDArray[Any], column: InspectedColumn, place: str, first_row: int) -> None:
        is_other = (numbers != 0) & (numbers != 1)
        column.ones += int(np.count_nonzero(numbers == 1))
        column.others += int(np.count_nonzero(is_other))
        if column.others and not column.first_other:
            row = int(np.flatnonzero(is_other)[0])
            column.first_other = f"{self._path}: {place}{first_row + row}: {numbers[row]}"


def _first_leaves(schema: pa.Schema) -> dict[str, int]:
    """By name of a column, the first of its columns in the file, which are those without children."""
    leaves, count = {}, 0
    for found in schema:
        leaves[found.name] = count
        count += _num_leaves(found.type)
    return leaves


def _num_leaves(of: pa.DataType) -> int:
    return sum(_num_leaves(of.field(index).type) for index in range(of.num_fields)) or 1


def _layout_of(found: pa.Field) -> Layout | None:
    """None: no numbers. Raises ValueError where metadata and type contradict each other."""
    if pa.types.is_fixed_size_binary(found.type):
        if not {b"dtype", b"width"} & (found.metadata or {}).keys():
            return None
        binary = vectors.binary_vectors(found)
        return Layout("numbers" if binary.dtype.kind == "f" else "integers", True, binary.width, binary)
    is_fixed = pa.types.is_fixed_size_list(found.type)
    is_vector = is_fixed or pa.types.is_list(found.type) or pa.types.is_large_list(found.type)
    of = found.type.value_type if is_vector else found.type
    width = found.type.list_size if is_fixed else None
    if pa.types.is_integer(of) or pa.types.is_boolean(of):
        return Layout("integers", is_vector, width)
    return Layout("numbers", is_vector, width) if pa.types.is_floating(of) else None


def _described(found: pa.Field, layout: Layout | None) -> str:
    """The type as stored, less the name of a list's element."""
    if layout is None or not layout.is_vector:
        return str(found.type)
    if layout.binary is not None:
        return f"fixed_size_binary of {layout.binary.dtype.name}"
    lists = "fixed_size_list" if layout.width is not None else "list"
    return f"{lists} of {found.type.value_type}"


def _with_width(described: str, width: int | None) -> str:
    return described if width is None else f"{described}[{width}]"


def _alike(layout: Layout | None, column: InspectedColumn) -> bool:
    """Whether a run can read both the column of the first file and this one; as floats it reads integers too."""
    first = column.layout
    if layout is None or first is None:
        return layout is first
    widths_differ = layout.width is not None and column.width is not None and layout.width != column.width
    return layout.is_vector == first.is_vector and not widths_differ


def _countable(numbers: NDArray[Any]) -> NDArray[Any]:
    """Booleans as 0 and 1."""
    return numbers.view(np.uint8) if numbers.dtype == bool else numbers


def _check_label(column: InspectedColumn, refused: Findings) -> None:
    count, zeros, ones = column.statistics.count, column.statistics.zeros, column.ones
    if column.others and not column.is_mixed and zeros and ones and zeros + ones >= _LABEL_SHARE * count:
        refused.add(
            f"column '{column.name}': {column.others:,} of {count:,} values are neither 0 nor 1, as labels are; "
            f"the first: {column.first_other}"
        )


def _remark_on_empty_lists(column: InspectedColumn, remarks: Findings) -> None:
    if column.width == 0 and column.statistics.count == 0:
        remarks.add(f"column '{column.name}': all its lists are empty: a run can't read it as a vector")


def _remark_on_size(inspection: Inspection) -> None:
    large = [group for group in inspection.row_groups if group.decoded >= LARGE_ROW_GROUP]
    if large:
        largest = max(large, key=lambda group: group.decoded)
        inspection.remarks.add(
            f"{largest.place} has {largest.rows:,} rows, {largest.decoded / 2**20:,.0f} MiB decoded, and a run holds "
            f"at least one for each lane that it reads; {len(large):,} have at least {LARGE_ROW_GROUP // 2**20} MiB; "
            "write smaller ones"
        )
