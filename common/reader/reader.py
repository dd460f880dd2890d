"""Reads batches of this rank's lanes from a Parquet table, in order, prefetched, from any position."""

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from common.batch import Batch
from common.errors import UserError
from common.reader.files import DataError
from common.reader.gather import empty_column, gather
from common.reader.order import Order, Piece, Position, check_lanes
from common.reader.parquet import ParquetTable
from common.reader.prefetch import Prefetcher
from common.reader.row_group_prefetcher import RowGroupPrefetcher
from common.reader.sampling import Sampling

B = TypeVar("B", bound=Batch)

Columns = dict[Any, torch.Tensor]
"""Columns of a batch, by key (anything hashable), each [rows] or [rows, values]."""


class PrefetchConfig(Protocol):
    """Keys of a data set's configuration that define its PrefetchOptions; shuffle_window may be None."""

    @property
    def prefetch_batches(self) -> int: ...

    @property
    def decode_threads(self) -> int: ...

    @property
    def shuffle_window(self) -> int | None: ...


class PrefetchOptions(NamedTuple):
    """Options for reading ahead and for shuffling.

    Only `shuffle_window` affects the order of examples.

    Attributes:
      prefetch_batches: number of batches kept ready for the consumer, >= 1.
      decode_threads: number of threads that decode row groups, >= 1.
      shuffle_window: minimum number of rows that are shuffled together, in whole row groups.
    """

    prefetch_batches: int = 8
    decode_threads: int = 2
    shuffle_window: int = 1

    @classmethod
    def from_config(cls, config: PrefetchConfig) -> Self:
        """Take the options from a data set's configuration. Without a shuffle_window, a span is one row group."""
        return cls(config.prefetch_batches, config.decode_threads, config.shuffle_window or 1)


@dataclass(frozen=True)
class PositionedBatch(Generic[B]):
    """A batch and the position after it, from which a run resumes once it has trained on the batch."""

    batch: B
    position: Position


# Keeps the seeds of sampling different from those of the order.
_SAMPLING_STREAM = 1


class _Share(NamedTuple):
    """A lane's part of a batch: its rows, and the weight of each."""

    pieces: list[Piece]
    weights: NDArray[np.float32]


class BatchReader(Generic[B]):
    """Reads this rank's share of the global batches of a table."""

    def __init__(
        self,
        table: ParquetTable,
        make_batch: Callable[[Columns, torch.Tensor], B],
        *,
        global_batch_size: int,
        lanes: int,
        rank: int = 0,
        world_size: int = 1,
        prefetch: PrefetchOptions | None = None,
        sampling: Sampling | None = None,
    ) -> None:
        """Prepare to read; nothing is decoded yet.

        Args:
          table: the table to read.
          make_batch: builds a batch from columns [batch, ...] and float32 weights [batch]. The weight of a row of the
            table is 1, or the one that `sampling` returns; the weight of a padding row is 0. Called in the background
            thread.
          global_batch_size: rows per batch over all ranks.
          lanes: number of lanes, a multiple of world_size and a divisor of global_batch_size.
          rank: rank of this process.
          world_size: number of ranks.
          prefetch: options for reading ahead and shuffling; None for PrefetchOptions().
          sampling: chooses the rows that enter batches; None keeps all rows.

        Raises:
          UserError: the rank is not one of the world's.
          ConfigError: lanes, global_batch_size and world_size do not fit together.
        """
        if not 0 <= rank < world_size:
            raise UserError(
                f"rank {rank} is outside a world of {world_size} rank(s), and would read no lane of its own"
            )
        check_lanes(lanes, global_batch_size, world_size)
        self.table = table
        self.global_batch_size = global_batch_size
        self.lanes = lanes
        self.fingerprint = table.fingerprint
        self._make_batch = make_batch
        self._prefetch = prefetch or PrefetchOptions()
        self.prefetch_batches = self._prefetch.prefetch_batches
        self._sampling = sampling
        self._own_lanes = range(rank, lanes, world_size)
        self._rows_per_batch = global_batch_size * (sampling.rows_read_per_kept if sampling is not None else 1)
        self._slots_per_lane = global_batch_size // lanes

    @property
    def batches_per_epoch(self) -> int:
        """Number of full global batches in an epoch of training."""
        return self.table.num_rows // self._rows_per_batch

    @property
    def decoded_bytes(self) -> int:
        """Largest number of bytes of decoded rows held at once: all with a cache, otherwise two spans per lane.

        Includes the buffers of the threads that decode.
        """
        rows = self.table.rows_per_group
        num_rows = self.table.num_rows
        if not self.table.is_cached:
            spans = 2 * len(self._own_lanes)
            if (window := self._prefetch.shuffle_window) > 1:
                num_rows = min(num_rows, spans * (window + int(rows.max())))
            else:  # the largest row groups
                num_rows = int(np.sort(rows)[-spans:].sum())
        num_rows += 3 * self._prefetch.decode_threads * int(rows.max())
        return num_rows * self.table.bytes_per_row

    @property
    def batch_bytes(self) -> int:
        """Largest number of bytes of batches held at once: those prefetched, the next and the current one."""
        rows = len(self._own_lanes) * self._slots_per_lane
        columns = self.table.columns.values()
        bytes_per_row = sum((column.num_kept or 1) * column.batch_dtype.itemsize for column in columns)
        bytes_per_row += self.table.encoded_bytes_per_row
        return (self.prefetch_batches + 2) * rows * bytes_per_row

    def check_trainable(self) -> None:
        """Raise DataError if there are fewer rows than one global batch."""
        if self.batches_per_epoch == 0:
            sampled = f", which is sampled from {self._rows_per_batch} rows" if self._sampling is not None else ""
            raise DataError(
                f"{self.table.inputs}: {self.table.num_rows} rows, fewer than one global batch of "
                f"{self.global_batch_size}{sampled}; add data or lower global_batch_size"
            )

    def remaining_batches(self, position: Position, num_epochs: int | None) -> float:
        """Return the number of training batches after `position`; infinity if num_epochs is None."""
        if num_epochs is None:
            return math.inf
        done = position.epoch * self.batches_per_epoch + position.cursors[0] // (self._rows_per_batch // self.lanes)
        return max(0, num_epochs * self.batches_per_epoch - done)

    def describe(self, position: Position) -> str:
        """Describe the global batch of training that ends at `position`, for messages. Epochs are counted from 0."""
        rows = self._rows_per_batch // self.lanes
        end = position.cursors[0]
        return (
            f"global batch {end // rows} of {self.batches_per_epoch} in epoch {position.epoch} (counted from 0), rows "
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
        """Yield shuffled batches epoch by epoch. Rows that do not fill a global batch are dropped from each epoch.

        Args:
          seed: seed of the shuffle.
          position: position at which to start; None for the beginning.
          num_epochs: total number of epochs, including those before `position`; None for no limit.
          pin_memory: whether batches are in page-locked memory, for copies to CUDA.

        Raises:
          DataError: there are fewer rows than one global batch.
        """
        self.check_trainable()
        start = position or Position.start(self.lanes)
        return self._prefetched(self._train(seed, start, num_epochs, pin_memory))

    def evaluate(self, *, pin_memory: bool = False) -> Prefetcher[PositionedBatch[B]]:
        """Yield every row once, in stored order.

        Rows of weight 0 pad the last batches, so that all ranks get the same number of batches of the same size.
        """
        order = Order(self.table.rows_per_group, self.lanes, self._rows_per_batch, seed=None, drop_last=False)
        return self._prefetched(self._evaluate(order, pin_memory))

    def _prefetched(self, source: Generator[PositionedBatch[B], None, None]) -> Prefetcher[PositionedBatch[B]]:
        return Prefetcher(source, self._prefetch.prefetch_batches)

    def _evaluate(self, order: Order, pin_memory: bool) -> Generator[PositionedBatch[B], None, None]:
        with RowGroupPrefetcher(self.table, self._prefetch.decode_threads) as decoded:
            yield from self._epoch(order, Position.start(self.lanes), decoded, 0, pin_memory)

    def _train(
        self, seed: int, position: Position, num_epochs: int | None, pin_memory: bool
    ) -> Generator[PositionedBatch[B], None, None]:
        with RowGroupPrefetcher(self.table, self._prefetch.decode_threads) as decoded:
            while num_epochs is None or position.epoch < num_epochs:
                order = Order(
                    self.table.rows_per_group,
                    self.lanes,
                    self._rows_per_batch,
                    seed=seed,
                    epoch=position.epoch,
                    shuffle_window=self._prefetch.shuffle_window,
                )
                yield from self._epoch(order, position, decoded, seed, pin_memory)
                position = Position(position.epoch + 1, (0,) * self.lanes)

    def _epoch(
        self, order: Order, position: Position, decoded: RowGroupPrefetcher, seed: int, pin_memory: bool
    ) -> Generator[PositionedBatch[B], None, None]:
        """Yield the rest of an epoch after `position`. The cursor of a lane stops at the end of the lane."""
        cursors = position.cursors
        lengths = [order.lane_length(lane) for lane in range(self.lanes)]
        spans: list[range] = []
        while any(cursor < length for cursor, length in zip(cursors, lengths, strict=True)):
            next_spans = [order.spans(lane, cursors[lane]) for lane in self._own_lanes]
            if next_spans != spans:
                spans = next_spans
                # The current spans of all lanes come before those that follow.
                by_need = sorted((index, span) for lane in spans for index, span in enumerate(lane))
                decoded.want(group for _, span in by_need for group in order.groups(span))
            lanes = []
            for lane in self._own_lanes:
                rng_seed = (seed, position.epoch, lane, cursors[lane], _SAMPLING_STREAM)
                lanes.append(self._choose(decoded, list(order.pieces(lane, cursors[lane])), rng_seed))
            batch = self._assemble(decoded, lanes, pin_memory)
            cursors = tuple(
                min(cursor + order.rows_per_take, length) for cursor, length in zip(cursors, lengths, strict=True)
            )
            yield PositionedBatch(batch, Position(position.epoch, cursors))

    def _choose(self, decoded: RowGroupPrefetcher, pieces: list[Piece], rng_seed: tuple[int, ...]) -> _Share:
        """Return a lane's next rows or, with sampling, those that it chooses with a generator seeded by `rng_seed`."""
        num_rows = sum(len(piece.rows) for piece in pieces)
        if self._sampling is None or num_rows == 0:
            return _Share(pieces, np.ones(num_rows, np.float32))
        sampled_columns = {
            key: np.concatenate([decoded[piece.group][key][piece.rows] for piece in pieces])
            for key in self._sampling.columns
        }
        chosen, weights = self._sampling.choose(sampled_columns, self._slots_per_lane, np.random.default_rng(rng_seed))
        bounds = np.cumsum([0, *(len(piece.rows) for piece in pieces)])
        cuts = np.searchsorted(chosen, bounds)
        kept = [
            Piece(piece.group, piece.rows[chosen[cuts[index] : cuts[index + 1]] - bounds[index]])
            for index, piece in enumerate(pieces)
        ]
        return _Share([piece for piece in kept if len(piece.rows)], weights)

    def _assemble(self, decoded: RowGroupPrefetcher, lanes: list[_Share], pin_memory: bool) -> B:
        """Gather each lane's rows into its slots of the batch; slots without a row are zero."""
        num_rows = len(lanes) * self._slots_per_lane
        # If all lanes of this rank have ended, another rank still has rows, and the batch is all padding.
        template = next((decoded[piece.group] for lane in lanes for piece in lane.pieces), None) or self.table.decode(0)
        weights = torch.zeros(num_rows)
        columns: Columns = {}
        for key, stored in template.items():
            column = self.table.columns.get(key)
            out = empty_column(num_rows, stored, column, pin_memory)
            array = out.numpy()
            for index, lane in enumerate(lanes):
                begin = index * self._slots_per_lane
                limit = begin + self._slots_per_lane
                for piece in lane.pieces:
                    end = begin + len(piece.rows)
                    gather(decoded[piece.group][key], piece.rows, column, array[begin:end])
                    begin = end
                array[begin:limit] = 0
            columns[key] = out if column is None else out.to(column.batch_dtype)
        for index, lane in enumerate(lanes):
            begin = index * self._slots_per_lane
            weights.numpy()[begin : begin + len(lane.weights)] = lane.weights
        batch = self._make_batch(columns, weights)
        return batch.pin_memory() if pin_memory else batch
