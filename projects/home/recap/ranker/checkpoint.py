"""Predicts columns in memory with the ranker of a checkpoint."""

from typing import Any

import pyarrow as pa
import torch

from common.errors import UserError
from common.reader.column import checked_values, stored_dtype
from common.reader.parquet import RowGroup
from core.autocast import configured_autocast
from projects.home.recap.config import RecapConfig
from projects.home.recap.predict.columns import OutputColumns
from projects.home.recap.ranker.columns import select, to_table, with_index
from projects.home.recap.saved import SavedRanker

_MAX_BATCH = 1024
_BATCH_MULTIPLE = 16
"""On CPUs, most shapes give a row the same bits in all batches of a multiple of 16 rows, but not in smaller ones."""
_ROWS_ENCODED = 64 * _MAX_BATCH


class CheckpointRanker:
    """Predicts with the ranker of a checkpoint. Several threads may call it at the same time."""

    def __init__(self, saved: SavedRanker, device: torch.device) -> None:
        """Prepare to predict.

        Args:
          saved: the ranker, on `device`.
          device: device to compute on.
        """
        self._saved = saved
        self._device = device
        self._columns = saved.columns
        self._outputs = OutputColumns(saved.ranker.tasks, has_score=saved.ranker.score is not None)
        self._autocast = configured_autocast(saved.config.runtime, device)
        read = [column.name for column in self._columns.values()]
        read += [] if saved.encoder is None else saved.encoder.columns
        self._ignored = _position_columns(saved.config)
        self.columns = [name for name in dict.fromkeys(read) if name not in self._ignored]
        """Names of the columns that it needs."""

    def __call__(self, columns: Any) -> pa.Table:
        """Predict rows.

        Args:
          columns: the columns with the features; see to_table(). Other columns are ignored.

        Returns:
          A row for each row of the columns, in their order: the index of a DataFrame, then probability.<task> and
          calibrated_probability.<task> of all tasks, float32, and score, float64, if it is configured.

        Raises:
          UserError: a column is missing, or has a type or a value that the ranker cannot use.
        """
        table = to_table(columns)
        features = self._features(table)
        outputs = self._outputs.empty(table.num_rows, self._device)
        for begin in range(0, table.num_rows, _ROWS_ENCODED):
            part = features.slice(begin, _ROWS_ENCODED)
            group = self._encoded(part, f"rows {begin} to {begin + part.num_rows - 1}")
            for first in range(0, part.num_rows, _MAX_BATCH):
                last = min(first + _MAX_BATCH, part.num_rows)
                for name, values in self._forward(group, first, last).items():
                    if name in outputs:
                        outputs[name][begin + first : begin + last] = values[: last - first]
        return with_index(self._outputs.append_to(table.select([]), outputs), table)

    def _features(self, table: pa.Table) -> pa.Table:
        """Return the columns with the features, after checking their types."""
        features = select(table, self.columns)
        for name in self._ignored:
            features = features.append_column(name, pa.nulls(table.num_rows))
        if table.num_rows == 0:  # empty lists have no type
            return features
        for column in self._columns.values():
            try:
                stored_dtype(features.schema.field(column.name), column)
            except ValueError as error:
                raise UserError(f"column '{column.name}': {error}") from error
        if self._saved.encoder is not None:
            try:
                self._saved.encoder.check(features.schema)
            except ValueError as error:
                raise UserError(str(error)) from error
        return features

    def _encoded(self, table: pa.Table, location: str) -> RowGroup:
        """Return the features as those of a decoded row group."""
        group: RowGroup = {
            key: checked_values(table.column(column.name), table.schema.field(column.name), column, location)
            for key, column in self._columns.items()
        }
        return group if self._saved.encoder is None else {**group, **self._saved.encoder.encode(table, location)}

    def _forward(self, group: RowGroup, begin: int, end: int) -> dict[str, torch.Tensor]:
        batch_size = -(-(end - begin) // _BATCH_MULTIPLE) * _BATCH_MULTIPLE
        inputs = self._saved.inputs(group, begin, end, batch_size)
        with torch.inference_mode(), self._autocast():
            outputs: dict[str, torch.Tensor] = self._saved.ranker(**_on_device(inputs, self._device))
        return outputs


def _position_columns(config: RecapConfig) -> list[str]:
    """Return the column that only holds the position of training examples, if there is one. Serving has no position."""
    position, features = config.model.position_debias_config, config.features or {}
    if position is None or position.position_feature is None:
        return []
    columns = {name: feature.column or name for name, feature in features.items()}
    column = columns[position.position_feature]
    return [column] if list(columns.values()).count(column) == 1 else []


def _on_device(value: Any, device: torch.device) -> Any:
    """Return tensors, or dicts of them, on a device, and any other value as it is."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    return {key: _on_device(each, device) for key, each in value.items()} if isinstance(value, dict) else value
