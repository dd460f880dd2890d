"""Defines the columns of predictions: those carried through from the input, and those that the model computes."""

from collections.abc import Mapping, Sequence

import pyarrow as pa
import torch

from common.errors import UserError
from common.reader.files import READ_ERRORS, DataError
from common.reader.parquet import ParquetTable
from common.reader.parquet_file import no_column, open_parquet
from projects.home.recap.predict.units import Unit

SCORE = "score"
_PREFIXES = {"probabilities": "probability.", "calibrated_probabilities": "calibrated_probability."}


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

    def description(self) -> list[dict[str, str]]:
        """Return the name, the type, the meaning and the task of each column."""
        kinds = {"probabilities": "probability", "calibrated_probabilities": "calibrated probability"}
        columns = [
            {"name": prefix + task, "type": "float", "kind": kinds[output], "task": task}
            for output, prefix in _PREFIXES.items()
            for task in self._tasks
        ]
        return columns + ([{"name": SCORE, "type": "double", "kind": "score"}] if SCORE in self.names else [])

    def empty(self, num_rows: int, device: torch.device) -> dict[str, torch.Tensor]:
        """Return tensors for the outputs of `num_rows` rows, by their names in HeavyRanker.forward()."""
        outputs = {output: torch.empty(num_rows, len(self._tasks), device=device) for output in _PREFIXES}
        if SCORE in self.names:
            outputs[SCORE] = torch.empty(num_rows, dtype=torch.float64, device=device)
        return outputs

    def append_to(self, carried: pa.Table, outputs: Mapping[str, torch.Tensor]) -> pa.Table:
        """Return a table with the columns of `carried`, then those of the outputs, which have as many rows."""
        columns = [column for output in _PREFIXES for column in outputs[output].T.contiguous()]
        columns += [outputs[SCORE]] if SCORE in self.names else []
        arrays = [pa.array(column.cpu().numpy()) for column in columns]
        fields = [pa.field(name, array.type, nullable=False) for name, array in zip(self.names, arrays, strict=True)]
        return pa.Table.from_arrays([*carried.columns, *arrays], schema=pa.schema([*carried.schema, *fields]))


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
        types: dict[str, pa.DataType] = {}
        for name, option in self._options.items():
            if name in outputs.names:
                raise UserError(
                    f"{option} {name}: predictions have a column of their own with this name. Rename it in the input, "
                    "or remove it from the options"
                )
            if name not in table.common_names:
                raise _missing_column(table, name, option)
            (types[name], path), *others = table.column_types[name].items()
            if others:
                raise DataError(
                    f"{others[0][1]}: column '{name}' is {others[0][0]}, but {types[name]} in {path}. Predict files of "
                    "different types into different directories"
                )
        self.schema = pa.schema(types)
        """Names and types of the columns."""

    def description(self) -> list[dict[str, str]]:
        """Return the name and the type of each column."""
        return [
            {"name": name, "type": kind, "kind": "carried"}
            for name, kind in zip(self.names, map(str, self.schema.types), strict=True)
        ]

    def read(self, unit: Unit) -> pa.Table:
        """Return the columns of a unit as they are stored, [rows of the unit].

        Raises:
          DataError: they cannot be read.
        """
        try:
            with open_parquet(unit.path) as file:
                table = file.read_row_groups(list(unit.groups_in_file), columns=self.names, use_threads=False)
        except READ_ERRORS as error:
            groups = f"{unit.groups_in_file.start} to {unit.groups_in_file.stop - 1}"
            raise DataError(f"{unit.path}: cannot read row groups {groups}: {error}") from error
        # The names of other columns can begin with one of these names and a dot.
        return table.select(self.names).replace_schema_metadata(None)


def _missing_column(table: ParquetTable, name: str, option: str) -> DataError:
    """Return the error about a column that not every file has exactly once."""
    for path in table.paths:
        with open_parquet(path) as file:
            names = file.schema_arrow.names
        if names.count(name) != 1:
            return DataError(f"{path}: {no_column(name, names, f', but {option} names it')}")
    raise AssertionError(f"all files have the column {name}")
