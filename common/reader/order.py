"""The order of examples: a function of (seed, epoch), not of the number of ranks.

An epoch is one sequence of all rows: the row groups in shuffled order, the rows within each shuffled too. It is dealt
over L lanes, each a contiguous stretch of the sequence; a global batch of B rows takes the next B/L rows of every
lane. Rank r of R reads lanes r, r+R, ... and nothing else, so that every number of ranks that divides L trains on the
same global batches. Lanes that begin within a row group share it.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from core.config.base_config import ConfigError


@dataclass(frozen=True)
class Position:
    """Where reading stands: the epoch (from 0) and how many rows of each lane were taken in it."""

    epoch: int
    cursors: tuple[int, ...]

    @classmethod
    def start(cls, lanes: int) -> "Position":
        """Before the first row."""
        return cls(0, (0,) * lanes)


@dataclass(frozen=True)
class Piece:
    """Rows of one row group, in the order in which they are to be read."""

    group: int
    rows: NDArray[np.int64]


def check_lanes(lanes: int, global_batch_size: int, world_size: int) -> None:
    """Raises ConfigError unless the lanes can be dealt over ranks and batches evenly."""
    if global_batch_size % lanes:
        raise ConfigError(
            f"global_batch_size {global_batch_size} is not a multiple of lanes {lanes}: "
            "a global batch takes equally many rows of every lane; change one of them"
        )
    if lanes % world_size:
        raise ConfigError(
            f"lanes {lanes} is not a multiple of the world size {world_size}: every rank reads equally many lanes; "
            f"set lanes to a multiple of {world_size} that divides global_batch_size {global_batch_size}"
            + ("" if global_batch_size % world_size == 0 else f" (itself no multiple of {world_size})")
        )


class Order:
    """One epoch's rows, dealt over lanes."""

    def __init__(
        self,
        rows_per_group: NDArray[np.int64],
        lanes: int,
        global_batch_size: int,
        *,
        seed: int | None,
        epoch: int = 0,
        drop_last: bool = True,
    ) -> None:
        """Deals an epoch.

        Args:
          rows_per_group: [groups], int64.
          lanes: a divisor of global_batch_size.
          global_batch_size: rows of a batch, over all lanes.
          seed: of the shuffle; None: rows in stored order.
          epoch: from 0.
          drop_last: leave out the rows that don't fill a global batch, so that all lanes have equally many; otherwise
            every row is dealt once, and lanes differ by at most one row.
        """
        self._rows_per_group = rows_per_group
        self._seed = seed
        self._epoch = epoch
        groups = np.arange(len(rows_per_group))
        if seed is not None:
            groups = np.random.default_rng([seed, epoch]).permutation(groups)
        self._groups = groups
        # Row `start[i]` of the sequence is the first of the i-th group.
        self._starts = np.concatenate([[0], np.cumsum(rows_per_group[groups])])
        num_rows = int(self._starts[-1])
        self._take = global_batch_size // lanes
        if drop_last:
            self.num_batches = num_rows // global_batch_size
            self._bounds = np.arange(lanes + 1) * (self.num_batches * self._take)
        else:
            self._bounds = np.arange(lanes + 1) * num_rows // lanes
            self.num_batches = -(-int(np.diff(self._bounds).max()) // self._take)
        # A lane comes back to its row group at every batch; at most two row groups a lane are in use.
        self._row_order = functools.lru_cache(maxsize=2 * lanes)(self._shuffled_rows)

    def lane_length(self, lane: int) -> int:
        """Rows of a lane in this epoch."""
        return int(self._bounds[lane + 1] - self._bounds[lane])

    def pieces(self, lane: int, cursor: int) -> Iterator[Piece]:
        """The next batch's rows of a lane after `cursor` rows, cut where row groups end; fewer at the lane's end."""
        begin = int(min(self._bounds[lane] + cursor, self._bounds[lane + 1]))
        end = int(min(begin + self._take, self._bounds[lane + 1]))
        while begin < end:
            index = int(np.searchsorted(self._starts, begin, side="right")) - 1
            start = int(self._starts[index])
            stop = min(end, int(self._starts[index + 1]))
            group = int(self._groups[index])
            yield Piece(group, self._row_order(group)[begin - start : stop - start])
            begin = stop

    def _shuffled_rows(self, group: int) -> NDArray[np.int64]:
        num_rows = int(self._rows_per_group[group])
        if self._seed is None:
            return np.arange(num_rows)
        # Not group: numpy pads seeds with zeros, and [seed, epoch] shuffles the groups.
        return np.random.default_rng([self._seed, self._epoch, group + 1]).permutation(num_rows)
