"""Defines the columns of predictions: those carried through from the input, and those that the model computes."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from common.errors import UserError
from common.reader.files import READ_ERRORS, DataError
from common.reader.parquet import ParquetTable
from common.reader.parquet_file import no_column, open_parquet

SCORE = "score"
_PREFIXES = {"probabilities": "probability.", "calibrated_probabilities": "calibrated_probability."}


def probability_column(task: str) -> str:
    """Return the name of the column with the probabilities of a task, float32."""
    return _PREFIXES["probabilities"] + task


def calibrated_column(task: str) -> str:
    """Return the name of the column with the calibrated probabilities of a task, float32."""
    return _PREFIXES["calibrated_probabilities"] + task


class OutputColumns:
    """The columns that a model computes: probabilities and calibrated probabilities by task, then the score."""

    def __init__(self, tasks: Sequence[str], *, has_score: bool) -> None:
        self._tasks = list(tasks)
        self.names = [prefix + task for prefix in _PREFIXES.values() for task in self._tasks]
        """Names of the columns, in order."""
        self.names += [SCORE] if has_score else []

    def empty(self, num_rows: int) -> dict[str, NDArray[np.generic]]:
        """Return arrays for the outputs of `num_rows` rows, by their names in HeavyRanker.forward()."""
        outputs: dict[str, NDArray[np.generic]] = {
            output: np.empty((num_rows, len(self._tasks)), np.float32) for output in _PREFIXES
        }
        if SCORE in self.names:
            outputs[SCORE] = np.empty(num_rows, np.float64)
        return outputs

    def append_to(self, carried: pa.Table, outputs: Mapping[str, NDArray[np.generic]]) -> pa.Table:
        """Return a table with the columns of `carried`, then those of the outputs, which have as many rows."""
        values = [outputs[output][:, index].copy() for output in _PREFIXES for index in range(len(self._tasks))]
        values += [outputs[SCORE]] if SCORE in self.names else []
        arrays = [pa.array(column) for column in values]
        fields = [pa.field(name, array.type, nullable=False) for name, array in zip(self.names, arrays, strict=True)]
        schema = pa.schema([*carried.schema, *fields])
        return pa.Table.from_arrays([*carried.columns, *arrays], schema=schema)


class CarriedColumns:
    """Reads columns of the input that predictions repeat, of any type."""

    def __init__(
        self, table: ParquetTable, names: Sequence[str], outputs: OutputColumns, group_by: str | None = None
    ) -> None:
        """Check the columns in every file.

        Args:
          table: the input.
          names: names of the columns.
          outputs: the columns that follow them.
          group_by: the column that --group_by names, which is carried through too.

        Raises:
          UserError: a column is missing in a file, has different types in two files, is listed twice, or has the name
            of an output.
        """
        if twice := sorted({name for name in names if list(names).count(name) > 1}):
            raise UserError(f"--columns lists {', '.join(twice)} more than once")
        self._options = dict.fromkeys(names, "--columns")
        if group_by is not None:
            self._options.setdefault(group_by, "--group_by")
        self.names = list(self._options)
        for name, option in self._options.items():
            if name in outputs.names:
                raise UserError(
                    f"{option} {name}: predictions have a column of their own with this name. Rename it in the input, "
                    "or remove it from the options"
                )
        self._files = list(zip(table.groups_by_file, table.paths, strict=True))
        found: dict[str, pa.Field] = {}
        for path in table.paths if self.names else ():
            for field in self._fields_of(path):
                first = found.setdefault(field.name, field)
                if first.type != field.type:
                    raise DataError(
                        f"{path}: column '{field.name}' is {field.type}, but {first.type} in {table.paths[0]}. Predict "
                        "files of different types into different directories"
                    )
        self.schema = pa.schema(found.values())
        """The columns as the first file stores them."""

    def read(self, groups: range) -> pa.Table:
        """Return the columns of row groups of one file, one after the other, as they are stored.

        Raises:
          DataError: they cannot be read.
        """
        of_file, path = next(each for each in self._files if groups.start in each[0])
        in_file = [group - of_file.start for group in groups]
        try:
            with open_parquet(path) as file:
                table = file.read_row_groups(in_file, columns=self.names, use_threads=False)
        except READ_ERRORS as error:
            raise DataError(f"{path}: row groups {in_file[0]} to {in_file[-1]}: cannot read: {error}") from error
        # The names of other columns can begin with one of these names and a dot; the metadata is that of the input.
        return table.select(self.names).replace_schema_metadata(None)

    def _fields_of(self, path: Path) -> list[pa.Field]:
        try:
            with open_parquet(path) as file:
                schema = file.schema_arrow
        except READ_ERRORS as error:
            raise DataError(f"{path}: cannot read this file as Parquet: {error}") from error
        for name in self.names:
            if schema.get_field_index(name) < 0:
                raise DataError(f"{path}: {no_column(name, schema.names, f', but {self._options[name]} names it')}")
        return [schema.field(name) for name in self.names]
