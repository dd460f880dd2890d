"""Predicts units: decodes row groups ahead, builds batches in a thread, and runs the ranker.

Batches never cross units, and rows of zeros pad the last one, so that the results of a unit depend neither on the
number of ranks nor on the units before it. Several batches are computed at the same time, each by one thread,
because the bits of a matrix product can depend on the number of threads that share it.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from common.batch import Batch
from common.process.memory import memory_shortage
from common.reader.files import DataError
from common.reader.parquet import ParquetTable, RowGroup
from common.reader.prefetch import Prefetcher
from common.reader.row_group_prefetcher import RowGroupPrefetcher
from core.autocast import Autocast
from projects.home.recap.predict.columns import CarriedColumns, OutputColumns
from projects.home.recap.predict.labels import LabeledInput
from projects.home.recap.predict.output import UnitResult
from projects.home.recap.predict.units import Unit
from projects.home.recap.saved import SavedRanker

_DECODE_THREADS = 2
_GROUPS_AHEAD = 2
_BATCHES_AHEAD = 8


def check_memory(table: ParquetTable) -> None:
    """Raise DataError if the row groups that are decoded at the same time do not fit into memory."""
    largest = np.sort(table.rows_per_group)[::-1]
    held = int(largest[: 1 + _GROUPS_AHEAD].sum())
    # Decoding a row group takes about three times its size.
    buffers = 3 * int(largest[:_DECODE_THREADS].sum())
    if shortage := memory_shortage((held + buffers) * table.bytes_per_row):
        raise DataError(
            f"{table.inputs}: decoding row groups of up to {largest[0]:,} rows {shortage}. Write smaller row groups"
        )


@dataclasses.dataclass(frozen=True)
class _Batch(Batch):
    """Rows of a unit, counted from its first row.

    Attributes:
      inputs: arguments of the ranker.
      labels: what LabeledInput.read() returns for these rows.
      begin: the first row.
      end: the row after the last one.
    """

    inputs: dict[str, Any]
    labels: dict[str, torch.Tensor]
    begin: int
    end: int


_Computed = tuple[_Batch, dict[str, torch.Tensor]]
"""A batch on the device, and the outputs of the ranker."""


class UnitPredictor:
    """Computes the predictions of units with a saved ranker."""

    def __init__(
        self,
        saved: SavedRanker,
        table: ParquetTable,
        carried: CarriedColumns,
        outputs: OutputColumns,
        labels: LabeledInput | None,
        *,
        autocast: Autocast,
        batch_size: int,
        threads: int,
    ) -> None:
        """Prepare to predict; nothing is decoded yet.

        Args:
          saved: the ranker, on any device.
          table: the input, from SavedRanker.open_table(), with the columns and encoders of `labels`.
          carried: the columns to carry through.
          outputs: the columns that the ranker computes.
          labels: labels of the input; None without metrics.
          autocast: autocast of the forward passes.
          batch_size: rows of each forward pass.
          threads: number of forward passes that run at the same time on the CPU. Results do not depend on it.
        """
        self._saved = saved
        self._table = table
        self._carried = carried
        self._outputs = outputs
        self._labels = labels
        self._device = next(saved.ranker.buffers()).device
        self._autocast = autocast
        self._batch_size = batch_size
        self._threads = threads if self._device.type == "cpu" else 1

    def predict(self, units: Sequence[Unit]) -> Iterator[UnitResult]:
        """Yield the results of units, in order.

        Raises:
          DataError: a row group cannot be read, or a feature or label has a value that is not allowed.
        """
        with contextlib.closing(self._computed(units)) as computed:
            for unit in units:
                outputs = self._outputs.empty(unit.num_rows, self._device)
                metrics = None if self._labels is None else self._labels.make_metrics(self._device)
                end = 0
                while end < unit.num_rows:
                    batch, found = next(computed)
                    end = batch.end
                    num_rows = end - batch.begin
                    for name, values in outputs.items():
                        values[batch.begin : end] = found[name][:num_rows]
                    if metrics is not None and self._labels is not None:
                        logits = self._labels.chosen(found["calibrated_logits"][:num_rows])
                        metrics.update({"calibrated_logits": logits, **batch.labels})
                table = self._outputs.append_to(self._carried.read(unit), outputs)
                yield UnitResult(unit, table, {} if metrics is None else metrics.state())

    def _computed(self, units: Sequence[Unit]) -> Generator[_Computed, None, None]:
        """Yield the batches of all units, in order, with the outputs of the ranker."""
        pool = concurrent.futures.ThreadPoolExecutor(self._threads, "forward", torch.set_num_threads, (1,))
        ahead: collections.deque[concurrent.futures.Future[_Computed]] = collections.deque()
        with contextlib.closing(Prefetcher(self._batches(units), _BATCHES_AHEAD)) as batches:
            try:
                for batch in batches:
                    ahead.append(pool.submit(self._forward, batch))
                    if len(ahead) > self._threads:
                        yield ahead.popleft().result()
                for future in ahead:
                    yield future.result()
            finally:
                pool.shutdown(cancel_futures=True)

    def _forward(self, batch: _Batch) -> _Computed:
        batch = batch.to(self._device, non_blocking=True)
        with torch.inference_mode(), self._autocast():
            return batch, self._saved.ranker(**batch.inputs)

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
                    if len(stored) > 1:
                        stored, start = [_joined(stored, start, end - begin)], 0
                    yield self._batch(stored[0], start, begin, end)

    def _batch(self, stored: RowGroup, start: int, begin: int, end: int) -> _Batch:
        """Return rows `begin` to `end` of a unit, which begin at row `start` of `stored`."""
        stop = start + end - begin
        inputs = self._saved.inputs(stored, start, stop, self._batch_size)
        labels = {} if self._labels is None else self._labels.read(stored, start, stop)
        batch = _Batch(inputs, labels, begin, end)
        return batch.pin_memory() if self._device.type == "cuda" else batch


def _joined(groups: Sequence[RowGroup], begin: int, num_rows: int) -> RowGroup:
    """Return `num_rows` rows of several row groups, from row `begin` of the first one."""
    last = num_rows - (sum(len(next(iter(group.values()))) for group in groups[:-1]) - begin)
    cuts = [slice(begin, None), *([slice(None)] * (len(groups) - 2)), slice(0, last)]
    return {
        key: np.concatenate([group[key][cut] for group, cut in zip(groups, cuts, strict=True)]) for key in groups[0]
    }
