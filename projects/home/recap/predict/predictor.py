"""Predicts units: decodes row groups ahead, builds batches in a thread, and runs the ranker.

Batches never cross units, and rows of zeros pad the last one, so that the results of a unit depend neither on the
number of ranks nor on the units before it.
"""

import contextlib
from collections.abc import Generator, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch

from common.reader.parquet import ParquetTable, RowGroup
from common.reader.prefetch import Prefetcher
from common.reader.row_group_prefetcher import RowGroupPrefetcher
from core.autocast import Autocast
from projects.home.recap.predict.columns import CarriedColumns, OutputColumns
from projects.home.recap.predict.units import Unit
from projects.home.recap.saved import SavedRanker

_DECODE_THREADS = 2
_GROUPS_AHEAD = 2
_BATCHES_AHEAD = 8


class _Batch(NamedTuple):
    """The inputs of the ranker for rows of a unit, counted from its first row."""

    inputs: dict[str, Any]
    begin: int
    end: int


class UnitPredictor:
    """Computes the predictions of units with a saved ranker."""

    def __init__(
        self,
        saved: SavedRanker,
        table: ParquetTable,
        carried: CarriedColumns,
        outputs: OutputColumns,
        *,
        device: torch.device,
        autocast: Autocast,
        batch_size: int,
    ) -> None:
        """Prepare to predict; nothing is decoded yet.

        Args:
          saved: the ranker, on `device`.
          table: the input, from SavedRanker.open_table().
          carried: the columns to carry through.
          outputs: the columns that the ranker computes.
          device: device to compute on.
          autocast: autocast of the forward passes.
          batch_size: rows of each forward pass.
        """
        self._saved = saved
        self._table = table
        self._carried = carried
        self._outputs = outputs
        self._device = device
        self._autocast = autocast
        self._batch_size = batch_size

    def predict(self, units: Sequence[Unit]) -> Iterator[tuple[Unit, pa.Table]]:
        """Yield each unit with its predictions: the carried columns, then those of OutputColumns.

        Raises:
          DataError: a row group cannot be read, or a feature has a value that is not allowed.
        """
        with contextlib.closing(Prefetcher(self._batches(units), _BATCHES_AHEAD)) as batches:
            for unit in units:
                outputs = self._outputs.empty(unit.num_rows)
                end = 0
                while end < unit.num_rows:
                    batch = next(batches)
                    end = batch.end
                    for name, values in self._forward(batch.inputs).items():
                        if name in outputs:
                            outputs[name][batch.begin : end] = values[: end - batch.begin].cpu().numpy()
                yield unit, self._outputs.append_to(self._carried.read(unit.groups), outputs)

    def _forward(self, inputs: dict[str, Any]) -> dict[str, torch.Tensor]:
        with torch.inference_mode(), self._autocast():
            outputs: dict[str, torch.Tensor] = self._saved.ranker(**_on_device(inputs, self._device))
        return outputs

    def _batches(self, units: Sequence[Unit]) -> Generator[_Batch, None, None]:
        """Yield the batches of all units, in order."""
        rows = self._table.rows_per_group
        upcoming = [group for unit in units for group in unit.groups if rows[group]]
        with RowGroupPrefetcher(self._table, _DECODE_THREADS) as decoded:
            for unit in units:
                groups = np.array([group for group in unit.groups if rows[group]])
                ends = np.cumsum(rows[groups])
                for begin in range(0, unit.num_rows, self._batch_size):
                    end = min(begin + self._batch_size, unit.num_rows)
                    first, last = np.searchsorted(ends, [begin, end - 1], side="right")
                    del upcoming[: upcoming.index(groups[first])]
                    decoded.want(upcoming[: last - first + 1 + _GROUPS_AHEAD])
                    start = begin - int(ends[first] - rows[groups[first]])
                    stored = [decoded[int(group)] for group in groups[first : last + 1]]
                    piece = stored[0] if len(stored) == 1 else _joined(stored, start, end - begin)
                    offset = start if len(stored) == 1 else 0
                    inputs = self._saved.inputs(piece, offset, offset + end - begin, self._batch_size)
                    yield _Batch(inputs, begin, end)


def _joined(groups: Sequence[RowGroup], begin: int, num_rows: int) -> RowGroup:
    """Return `num_rows` rows of several row groups, from row `begin` of the first one."""
    last = num_rows - (sum(len(next(iter(group.values()))) for group in groups[:-1]) - begin)
    cuts = [slice(begin, None), *([slice(None)] * (len(groups) - 2)), slice(0, last)]
    return {
        key: np.concatenate([group[key][cut] for group, cut in zip(groups, cuts, strict=True)]) for key in groups[0]
    }


def _on_device(value: Any, device: torch.device) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(device, non_blocking=True)
    return {key: _on_device(each, device) for key, each in value.items()} if isinstance(value, dict) else value
