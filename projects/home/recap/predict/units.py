"""Divides the rows of the input into units of work, a function of the files and the options alone.

A unit is predicted by one rank, and its results are written at once. A killed run continues with the units that have no
results.
"""

from dataclasses import dataclass
from pathlib import Path

from common.reader.parquet import ParquetTable


@dataclass(frozen=True)
class Unit:
    """Consecutive row groups of one file.

    Attributes:
      index: its number among all units, in the order of the input, counted from 0.
      path: the file.
      groups: its row groups, counted over all files of the table, as ParquetTable.decode() does.
      first_row: number of rows of the input before its first row.
      num_rows: number of its rows, at least 1.
    """

    index: int
    path: Path
    groups: range
    first_row: int
    num_rows: int


def split_into_units(table: ParquetTable, rows_per_unit: int) -> list[Unit]:
    """Divide all rows of a table into units, in the order of the input.

    A unit has at most `rows_per_unit` rows, unless it is a single row group that has more. Row groups without rows do
    not make a unit of their own.
    """
    units: list[Unit] = []
    first_row = 0
    for path, groups in zip(table.paths, table.groups_by_file, strict=True):
        begin, num_rows = groups.start, 0
        for group in groups:
            rows = int(table.rows_per_group[group])
            if num_rows and num_rows + rows > rows_per_unit:
                units.append(Unit(len(units), path, range(begin, group), first_row, num_rows))
                first_row += num_rows
                begin, num_rows = group, 0
            num_rows += rows
        if num_rows:
            units.append(Unit(len(units), path, range(begin, groups.stop), first_row, num_rows))
            first_row += num_rows
    return units
