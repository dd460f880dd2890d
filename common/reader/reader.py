"""Batches from a Parquet table: this rank's lanes, in order, decoded ahead, from any position on."""

import math
from collections.abc import Callable, Generator, Hashable
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from common.batch import Batch
from common.reader.files import DataError
from common.reader.gather import empty_column, gather
from common.reader.order import Order, Piece, Position, check_lanes
from common.reader.parquet import ParquetTable
from common.reader.prefetch import Prefetcher
from common.reader.row_group_prefetcher import RowGroupPrefetcher
from common.reader.sampling import Sampling

B = TypeVar("B", bound=Batch)

Columns = dict[Hashable, torch.Tensor]
"""Columns of a batch, by key, each [rows] or [rows, values]."""


class PrefetchOptions(NamedTuple):
    """How much is held ready; examples and their order are the same, but for shuffle_window.

    Attributes:
      prefetch_batches: batches made ahead of the consumer, >= 1.
      decode_threads: threads that decode row groups, >= 1.
      shuffle_window: rows that are shuffled together, at least; whole row groups.
    """

    prefetch_batches: int = 8
    decode_threads: int = 2
    shuffle_window: int = 1


@dataclass(frozen=True)
class PositionedBatch(Generic[B]):
    """A batch and the position behind it: what a run that has trained on it resumes from."""

    batch: B
    position: Position


_OF_SAMPLING = 1


class _Share(NamedTuple):
    """A lane's part of a batch: its rows, and a weight for each."""

    pieces: list[Piece]
    weights: NDArray[np.float32]


class BatchReader(Generic[B]):
    """Reads this rank's share of a table's global batches."""

    def __init__(
        self,
        table: ParquetTable,
        make_batch: Callable[[Columns, torch.Tensor], B],
        *,
        global_batch_size: int,
        lanes: int,
        rank: int = 0,
        world_size: int = 1,
        reading: PrefetchOptions | None = None,
        sampling: Sampling | None = None,
    ) -> None:
        """Prepares to read; nothing is decoded yet.

        Args:
          table: the rows.
          make_batch: builds a batch from columns [batch, ...] and float32 weights [batch], 1 for a row of the table
            (what `sampling` says, where there is one) and 0 for one that only fills the batch up. Called in the
            background thread.
          global_batch_size: rows per batch over all ranks.
          lanes: a multiple of world_size, a divisor of global_batch_size.
          rank: of this process.
          world_size: number of processes.
          reading: how much is held ready; None: PrefetchOptions().
          sampling: which rows get into batches; None: all.

        Raises:
          ConfigError: lanes, batch and world size don't fit each other.
        """
        check_lanes(lanes, global_batch_size, world_size)
        self.table = table
        self.global_batch_size = global_batch_size
        self.lanes = lanes
        self.fingerprint = table.fingerprint
        self._make_batch = make_batch
        self._reading = reading or PrefetchOptions()
        self.prefetch_batches = self._reading.prefetch_batches
        self._sampling = sampling
        self._own_lanes = range(rank, lanes, world_size)
        self._rows_per_batch = global_batch_size * (sampling.rows_read_per_kept if sampling is not None else 1)
        self._places_per_lane = global_batch_size // lanes

    @property
    def batches_per_epoch(self) -> int:
        """Full global batches in an epoch of training."""
        return self.table.num_rows // self._rows_per_batch

    def check_trainable(self) -> None:
        """Raises DataError where there are fewer rows than one global batch."""
        if self.batches_per_epoch == 0:
            sampled = (
                f", for which {self._rows_per_batch} are read to choose from" if self._sampling is not None else ""
            )
            raise DataError(
                f"{self.table.inputs}: {self.table.num_rows} rows, fewer than one global batch of "
                f"{self.global_batch_size}{sampled}; add data or lower global_batch_size"
            )

    def remaining_batches(self, position: Position, num_epochs: int | None) -> float:
        """Batches of training behind `position`; infinite without a limit of epochs."""
        if num_epochs is None:
            return math.inf
        done = position.epoch * self.batches_per_epoch + position.cursors[0] // (self._rows_per_batch // self.lanes)
        return max(0, num_epochs * self.batches_per_epoch - done)

    def describe(self, position: Position) -> str:
        """Which global batch of training ends at `position`, for people. Epochs are counted from 0, as in positions."""
        rows = self._rows_per_batch // self.lanes
        end = position.cursors[0]
        return (
            f"global batch {end // rows} of {self.batches_per_epoch} in epoch {position.epoch} (from 0), rows "
            f"{end - rows + 1} to {end} of each of {self.lanes} lanes"
        )

    def train(
        self,
        *,
        seed: int,
        position: Position | None = None,
        num_epochs: int | None = 1,
        pin_memory: bool = False,
    ) -> Prefetcher[PositionedBatch[B]]:
        """Shuffled batches, epoch after epoch, each without the rows that don't fill a last global batch.

        Args:
          seed: of the shuffle.
          position: where to begin; None: at the start.
          num_epochs: passes in all, counted from epoch 0; None: no end.
          pin_memory: of the batches, for copies to CUDA.

        Raises:
          DataError: there are fewer rows than one global batch.
        """
        self.check_trainable()
        start = position or Position.start(self.lanes)
        return self._ahead(self._train(seed, start, num_epochs, pin_memory))

    def evaluate(self, *, pin_memory: bool = False) -> Prefetcher[PositionedBatch[B]]:
        """Every row once, in stored order; the last batches are filled up with masked rows, alike on all ranks."""
        order = Order(self.table.rows_per_group, self.lanes, self._rows_per_batch, seed=None, drop_last=False)
        return self._ahead(self._evaluate(order, pin_memory))

    def _ahead(self, source: Generator[PositionedBatch[B], None, None]) -> Prefetcher[PositionedBatch[B]]:
        return Prefetcher(source, self._reading.prefetch_batches)

    def _evaluate(self, order: Order, pin_memory: bool) -> Generator[PositionedBatch[B], None, None]:
        with RowGroupPrefetcher(self.table, self._reading.decode_threads) as decoded:
            yield from self._epoch(order, Position.start(self.lanes), decoded, 0, pin_memory)

    def _train(
        self, seed: int, position: Position, num_epochs: int | None, pin_memory: bool
    ) -> Generator[PositionedBatch[B], None, None]:
        with RowGroupPrefetcher(self.table, self._reading.decode_threads) as decoded:
            while num_epochs is None or position.epoch < num_epochs:
                order = Order(
                    self.table.rows_per_group,
                    self.lanes,
                    self._rows_per_batch,
                    seed=seed,
                    epoch=position.epoch,
                    shuffle_window=self._reading.shuffle_window,
                )
                yield from self._epoch(order, position, decoded, seed, pin_memory)
                position = Position(position.epoch + 1, (0,) * self.lanes)

    def _epoch(
        self, order: Order, position: Position, decoded: RowGroupPrefetcher, seed: int, pin_memory: bool
    ) -> Generator[PositionedBatch[B], None, None]:
        """The rest of an epoch after `position`. A lane's cursor stops at the lane's end."""
        cursors = position.cursors
        lengths = [order.lane_length(lane) for lane in range(self.lanes)]
        windows: list[range] = []
        while any(cursor < length for cursor, length in zip(cursors, lengths, strict=True)):
            at_hand = [order.windows(lane, cursors[lane]) for lane in self._own_lanes]
            if at_hand != windows:
                windows = at_hand
                # What is needed first comes first.
                by_need = sorted((index, window) for lane in windows for index, window in enumerate(lane))
                decoded.want(group for _, window in by_need for group in order.groups(window))
            lanes = []
            for lane in self._own_lanes:
                # The last number keeps it apart from the generators of the order.
                place = (seed, position.epoch, lane, cursors[lane], _OF_SAMPLING)
                lanes.append(self._choose(decoded, list(order.pieces(lane, cursors[lane])), place))
            batch = self._assemble(decoded, lanes, pin_memory)
            cursors = tuple(
                min(cursor + order.rows_per_take, length) for cursor, length in zip(cursors, lengths, strict=True)
            )
            yield PositionedBatch(batch, Position(position.epoch, cursors))

    def _choose(self, decoded: RowGroupPrefetcher, pieces: list[Piece], place: tuple[int, ...]) -> _Share:
        """A lane's next rows, less those that are not chosen by a generator that `place` seeds."""
        num_rows = sum(len(piece.rows) for piece in pieces)
        if self._sampling is None or num_rows == 0:
            return _Share(pieces, np.ones(num_rows, np.float32))
        looked_at = {
            key: np.concatenate([decoded[piece.group][key][piece.rows] for piece in pieces])
            for key in self._sampling.columns
        }
        chosen, weights = self._sampling.choose(looked_at, self._places_per_lane, np.random.default_rng(place))
        bounds = np.cumsum([0, *(len(piece.rows) for piece in pieces)])
        cuts = np.searchsorted(chosen, bounds)
        kept = [
            Piece(piece.group, piece.rows[chosen[cuts[index] : cuts[index + 1]] - bounds[index]])
            for index, piece in enumerate(pieces)
        ]
        return _Share([piece for piece in kept if len(piece.rows)], weights)

    def _assemble(self, decoded: RowGroupPrefetcher, lanes: list[_Share], pin_memory: bool) -> B:
        """Gathers each lane's rows into its stretch of the batch; rows of a lane that has ended are zero."""
        num_rows = len(lanes) * self._places_per_lane
        # Where all of this rank's lanes have ended, another rank's have not.
        like = next((decoded[piece.group] for lane in lanes for piece in lane.pieces), None) or self.table.decode(0)
        weights = torch.zeros(num_rows)
        columns: Columns = {}
        for key, stored in like.items():
            column = self.table.columns.get(key)
            out = empty_column(num_rows, stored, column, pin_memory)
            array = out.numpy()
            for index, lane in enumerate(lanes):
                begin = index * self._places_per_lane
                limit = begin + self._places_per_lane
                for piece in lane.pieces:
                    end = begin + len(piece.rows)
                    gather(decoded[piece.group][key], piece.rows, column, array[begin:end])
                    begin = end
                array[begin:limit] = 0
            columns[key] = out if column is None else out.to(column.batch_dtype)
        for index, lane in enumerate(lanes):
            begin = index * self._places_per_lane
            weights.numpy()[begin : begin + len(lane.weights)] = lane.weights
        batch = self._make_batch(columns, weights)
        return batch.pin_memory() if pin_memory else batch
