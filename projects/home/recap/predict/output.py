"""Writes the results of units as Parquet files, each complete or invisible. Their bytes depend on their rows alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pyarrow as pa

from common.files.durable import atomic_file
from common.reader.parquet_file import create_parquet
from projects.home.recap.predict.units import Unit

_ROWS_PER_GROUP = 65_536


class UnitResult(NamedTuple):
    """The results of a unit.

    Attributes:
      unit: the unit.
      table: the carried columns, then those of OutputColumns, [rows of the unit].
      metrics: state of the metrics of the unit, numpy arrays (MultiTaskMetrics.state()); empty without labels.
    """

    unit: Unit
    table: pa.Table
    metrics: Mapping[str, Any]


class UnitOutput(Protocol):
    """Writes results of units. Different ranks write those of different units."""

    def is_finished(self, unit: Unit) -> bool:
        """Return whether the results of a unit are complete, so that it need not be predicted again."""

    def write(self, result: UnitResult) -> None:
        """Write the results of a unit, so that they are complete or invisible. Raises OSError."""


class UnitFiles:
    """A directory with a file for each unit: part-00000.parquet for the first. It is a UnitOutput.

    The order of the names is the order of the input.
    """

    def __init__(self, directory: Path, num_units: int) -> None:
        """Describe the directory; nothing is created yet."""
        self.directory = directory
        self._digits = max(5, len(str(num_units - 1)))

    def path(self, unit: Unit) -> Path:
        """Return the path of a unit's file."""
        return self.directory / f"part-{unit.index:0{self._digits}}.parquet"

    def is_finished(self, unit: Unit) -> bool:
        """Return whether the file of a unit exists; see UnitOutput."""
        return self.path(unit).exists()

    def write(self, result: UnitResult) -> None:
        """Write the file of a unit; see UnitOutput."""
        write_table(self.path(result.unit), result.table)


def write_table(path: Path, table: pa.Table) -> None:
    """Write a Parquet file that appears under its name, replacing any other, when it is complete and durable."""
    options = {"compression": "zstd", "compression_level": 1, "use_dictionary": False}
    with atomic_file(path) as partial, create_parquet(partial, table.schema, **options) as writer:
        writer.write_table(table, row_group_size=_ROWS_PER_GROUP)
