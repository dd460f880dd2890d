"""Batches from a Parquet table: this rank's lanes, in order, decoded ahead, from any position on."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from common.batch import Batch
from common.reader.files import DataError
from common.reader.order import Order, Piece, Position, check_lanes
from common.reader.parquet import Columns, ParquetTable
from common.reader.prefetch import Prefetcher

B = TypeVar("B", bound=Batch)

# Batches decoded ahead of the consumer.
PREFETCH = 8


@dataclass(frozen=True)
class Placed(Generic[B]):
    """A batch and the position behind it: what a run that has trained on it resumes from."""

    batch: B
    position: Position


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
    ) -> None:
        """Prepares to read; nothing is decoded yet.

        Args:
          table: the rows.
          make_batch: builds a batch from columns [batch, ...] and a float32 mask [batch], 1 for a row of the table
            and 0 for one that only fills the batch up. Called in the background thread.
          global_batch_size: rows per batch over all ranks.
          lanes: a multiple of world_size, a divisor of global_batch_size.
          rank: of this process.
          world_size: number of processes.

        Raises:
          ConfigError: lanes, batch and world size don't fit each other.
        """
        check_lanes(lanes, global_batch_size, world_size)
        self.table = table
        self.global_batch_size = global_batch_size
        self.lanes = lanes
        self.fingerprint = table.fingerprint
        self._make_batch = make_batch
        self._own_lanes = range(rank, lanes, world_size)
        self._take = global_batch_size // lanes

    @property
    def batches_per_epoch(self) -> int:
        """Full global batches in an epoch of training."""
        return self.table.num_rows // self.global_batch_size

    def check_trainable(self) -> None:
        """Raises DataError where there are fewer rows than one global batch."""
        if self.batches_per_epoch == 0:
            raise DataError(
                f"{self.table.inputs}: {self.table.num_rows} rows, fewer than one global batch of "
                f"{self.global_batch_size}; add data or lower global_batch_size"
            )

    def remaining_batches(self, position: Position, num_epochs: int | None) -> float:
        """Batches of training behind `position`; infinite without a limit of epochs."""
        if num_epochs is None:
            return math.inf
        done = position.epoch * self.batches_per_epoch + position.cursors[0] // self._take
        return max(0, num_epochs * self.batches_per_epoch - done)

    def train(
        self,
        *,
        seed: int,
        position: Position | None = None,
        num_epochs: int | None = 1,
        pin_memory: bool = False,
    ) -> Prefetcher[Placed[B]]:
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
        return self._ahead(self._train(seed, start, num_epochs), pin_memory)

    def evaluate(self, *, pin_memory: bool = False) -> Prefetcher[Placed[B]]:
        """Every row once, in stored order; the last batches are filled up with masked rows, alike on all ranks."""
        order = Order(self.table.rows_per_group, self.lanes, self.global_batch_size, seed=None, drop_last=False)
        return self._ahead(self._epoch(order, Position.start(self.lanes)), pin_memory)

    @staticmethod
    def _ahead(source: Iterator[Placed[B]], pin_memory: bool) -> Prefetcher[Placed[B]]:
        if pin_memory:
            source = (Placed(item.batch.pin_memory(), item.position) for item in source)
        return Prefetcher(source, PREFETCH)

    def _train(self, seed: int, position: Position, num_epochs: int | None) -> Iterator[Placed[B]]:
        while num_epochs is None or position.epoch < num_epochs:
            order = Order(
                self.table.rows_per_group, self.lanes, self.global_batch_size, seed=seed, epoch=position.epoch
            )
            yield from self._epoch(order, position)
            position = Position(position.epoch + 1, (0,) * self.lanes)

    def _epoch(self, order: Order, position: Position) -> Iterator[Placed[B]]:
        """The rest of an epoch after `position`. A lane's cursor stops at the lane's end."""
        decoded: dict[int, Columns] = {}
        cursors = position.cursors
        lengths = [order.lane_length(lane) for lane in range(self.lanes)]
        while any(cursor < length for cursor, length in zip(cursors, lengths, strict=True)):
            pieces = [list(order.pieces(lane, cursors[lane])) for lane in self._own_lanes]
            needed = {piece.group for lane in pieces for piece in lane}
            decoded = {group: columns for group, columns in decoded.items() if group in needed}
            for group in sorted(needed - decoded.keys()):
                decoded[group] = self.table.decode(group)
            batch = self._assemble(decoded, pieces)
            cursors = tuple(min(cursor + self._take, length) for cursor, length in zip(cursors, lengths, strict=True))
            yield Placed(batch, Position(position.epoch, cursors))

    def _assemble(self, decoded: dict[int, Columns], lanes: list[list[Piece]]) -> B:
        """Gathers each lane's rows into its stretch of the batch; rows of a lane that has ended are zero."""
        rows = len(lanes) * self._take
        any_decoded = next(iter(decoded.values()), None)
        if any_decoded is None:  # all of this rank's lanes have ended, another rank's have not
            any_decoded = self.table.decode(0)
        batch = {key: torch.zeros((rows, *c.shape[1:]), dtype=c.dtype) for key, c in any_decoded.items()}
        mask = torch.zeros(rows)
        # Gathered by numpy: for a few dozen rows torch takes five times as long.
        arrays = {key: column.numpy() for key, column in batch.items()}
        for index, pieces in enumerate(lanes):
            begin = index * self._take
            for piece in pieces:
                end = begin + len(piece.rows)
                for key, column in decoded[piece.group].items():
                    # With "clip", which never has to, numpy writes to `out` directly.
                    column.numpy().take(piece.rows, axis=0, out=arrays[key][begin:end], mode="clip")
                mask[begin:end] = 1
                begin = end
        return self._make_batch(batch, mask)
