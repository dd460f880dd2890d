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
      groups_in_file: its row groups, counted within the file.
    """

    index: int
    path: Path
    groups: range
    first_row: int
    num_rows: int
    groups_in_file: range


def split_into_units(table: ParquetTable, rows_per_unit: int) -> list[Unit]:
    """Divide all rows of a table into units, in the order of the input.

    A unit has at most `rows_per_unit` rows, unless it is a single row group that has more. Row groups without rows do
    not make a unit of their own.
    """
    units: list[Unit] = []
    first_row = 0

    def add(path: Path, of_file: range, groups: range, num_rows: int) -> None:
        nonlocal first_row
        in_file = range(groups.start - of_file.start, groups.stop - of_file.start)
        units.append(Unit(len(units), path, groups, first_row, num_rows, in_file))
        first_row += num_rows

    for path, of_file in zip(table.paths, table.groups_by_file, strict=True):
        begin, num_rows = of_file.start, 0
        for group in of_file:
            rows = int(table.rows_per_group[group])
            if num_rows and num_rows + rows > rows_per_unit:
                add(path, of_file, range(begin, group), num_rows)
                begin, num_rows = group, 0
            num_rows += rows
        if num_rows:
            add(path, of_file, range(begin, of_file.stop), num_rows)
    return units
