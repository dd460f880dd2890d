"""Predicts columns in memory with an export, by the score.py that the export contains."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from common.errors import UserError
from common.reader.vectors import with_lists
from projects.home.recap.export.export import SCORE
from projects.home.recap.export.signature import SIGNATURE
from projects.home.recap.predict.columns import OutputColumns
from projects.home.recap.ranker.columns import select, to_table, with_index

_MAX_BATCH = 1024


def is_export(path: Path) -> bool:
    """Return whether a directory is an export."""
    return (path / SIGNATURE).is_file()


class ExportRanker:
    """Predicts with an export. Several threads may call it at the same time."""

    def __init__(self, path: Path) -> None:
        """Load the export; its score.py is run.

        Args:
          path: directory of the export.

        Raises:
          UserError: a file is missing or damaged.
        """
        self._path = path
        spec = importlib.util.spec_from_file_location("exported_score", path / SCORE)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
            self._ranker = module.Ranker(path)
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise UserError(f"{path}: cannot use this export: {type(error).__name__}: {error}. Export again") from error
        signature = self._ranker.signature
        has_score = any(output["name"] == "score" for output in signature["outputs"])
        self._outputs = OutputColumns(signature["tasks"], has_score=has_score)
        self.columns: list[str] = self._ranker.columns
        """Names of the columns that it needs."""

    def __call__(self, columns: Any) -> pa.Table:
        """Return the predictions for columns; see CheckpointRanker.

        Raises:
          UserError: a column is missing, or has a value that the export cannot use.
        """
        table = to_table(columns)
        features = with_lists(select(table, self.columns))
        outputs = self._outputs.empty(table.num_rows, torch.device("cpu"))
        for begin in range(0, table.num_rows, _MAX_BATCH):
            part = features.slice(begin, _MAX_BATCH)
            end = begin + part.num_rows
            try:
                predicted = self._ranker({name: _values(part.column(name)) for name in self.columns})
            except ValueError as error:
                raise UserError(f"rows {begin} to {end - 1}: {error}") from error
            for name in outputs:
                outputs[name][begin:end] = torch.from_numpy(predicted[name])
        return with_index(self._outputs.append_to(table.select([]), outputs), table)


def _values(column: pa.ChunkedArray) -> Any:
    """Return a column as score.py takes it: an array of numbers or times, an array [rows, values], or a list."""
    kind = column.type
    if pa.types.is_temporal(kind) or pa.types.is_floating(kind):
        return column.to_numpy()  # nulls become NaT and NaN
    if column.null_count == 0 and (pa.types.is_integer(kind) or pa.types.is_boolean(kind)):
        return column.to_numpy()
    if pa.types.is_fixed_size_list(kind) and column.null_count == 0:
        values = pa.chunked_array([chunk.flatten() for chunk in column.chunks], kind.value_type)
        if values.null_count == 0:
            array: np.ndarray[Any, Any] = values.to_numpy()
            return array.reshape(-1, kind.list_size)
    return column.to_pylist()
