"""The order of examples: a function of (seed, epoch), not of the number of ranks.

An epoch is one sequence of all rows: the row groups in shuffled order, cut into windows of one or more, the rows
within each window shuffled. It is dealt over L lanes, each a contiguous stretch of the sequence; a global batch of B
rows takes the next B/L rows of every lane. Rank r of R reads lanes r, r+R, ... and nothing else, so that every number
of ranks that divides L trains on the same global batches. Lanes that begin within a window share it.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.errors import ConfigError


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
        rows_per_batch: int,
        *,
        seed: int | None,
        epoch: int = 0,
        drop_last: bool = True,
        shuffle_window: int = 1,
    ) -> None:
        """Deals an epoch.

        Args:
          rows_per_group: [groups], int64.
          lanes: a divisor of rows_per_batch.
          rows_per_batch: rows that a global batch takes, over all lanes.
          seed: of the shuffle; None: rows in stored order.
          epoch: from 0.
          drop_last: leave out the rows that don't fill a global batch, so that all lanes have equally many; otherwise
            every row is dealt once, and lanes differ by at most one row.
          shuffle_window: rows that are shuffled together, at least; a window consists of whole row groups.
        """
        self._seed = seed
        self._epoch = epoch
        groups = np.arange(len(rows_per_group))
        if seed is not None:
            groups = np.random.default_rng([seed, epoch]).permutation(groups)
        self._groups = groups
        # Row `start[i]` of the sequence is the first of the i-th group.
        self._starts = np.concatenate([[0], np.cumsum(rows_per_group[groups])])
        self._windows = _windows(self._starts, shuffle_window if seed is not None else 1)
        self._window_starts = self._starts[self._windows]
        num_rows = int(self._starts[-1])
        self.rows_per_take = rows_per_batch // lanes
        if drop_last:
            self.num_batches = num_rows // rows_per_batch
            self._bounds = np.arange(lanes + 1) * (self.num_batches * self.rows_per_take)
        else:
            self._bounds = np.arange(lanes + 1) * num_rows // lanes
            self.num_batches = -(-int(np.diff(self._bounds).max()) // self.rows_per_take)
        # A lane comes back to its window at every batch; at most two windows a lane are in use.
        self._row_order = functools.lru_cache(maxsize=2 * lanes)(self._shuffled_rows)

    def lane_length(self, lane: int) -> int:
        """Rows of a lane in this epoch."""
        return int(self._bounds[lane + 1] - self._bounds[lane])

    def windows(self, lane: int, cursor: int) -> range:
        """The windows that a lane's next batch after `cursor` rows is taken from, and the one behind them."""
        begin, end = self._next_rows(lane, cursor)
        if begin == end:
            return range(0)
        first = self._window_of(begin)
        beyond_lane = self._window_of(int(self._bounds[lane + 1]) - 1) + 1
        return range(first, min(self._window_of(end - 1) + 2, beyond_lane))

    def groups(self, window: int) -> list[int]:
        """The row groups of a window."""
        return [int(group) for group in self._groups[self._windows[window] : self._windows[window + 1]]]

    def pieces(self, lane: int, cursor: int) -> Iterator[Piece]:
        """The next batch's rows of a lane after `cursor` rows, by row group; fewer at the lane's end."""
        begin, end = self._next_rows(lane, cursor)
        while begin < end:
            window = self._window_of(begin)
            start, stop = int(self._window_starts[window]), min(end, int(self._window_starts[window + 1]))
            yield from self._by_group(window, self._row_order(window)[begin - start : stop - start])
            begin = stop

    def _next_rows(self, lane: int, cursor: int) -> tuple[int, int]:
        begin = int(min(self._bounds[lane] + cursor, self._bounds[lane + 1]))
        return begin, int(min(begin + self.rows_per_take, self._bounds[lane + 1]))

    def _window_of(self, row: int) -> int:
        """The window of a row of the sequence."""
        return int(np.searchsorted(self._window_starts, row, side="right")) - 1

    def _by_group(self, window: int, rows: NDArray[np.int64]) -> Iterator[Piece]:
        """`rows`, counted from the window's first, as rows of its row groups."""
        first, last = int(self._windows[window]), int(self._windows[window + 1])
        if last - first == 1:
            yield Piece(int(self._groups[first]), rows)
            return
        starts = self._starts[first:last] - self._starts[first]
        index = np.searchsorted(starts, rows, side="right") - 1
        for of_group in np.unique(index):
            yield Piece(int(self._groups[first + of_group]), rows[index == of_group] - starts[of_group])

    def _shuffled_rows(self, window: int) -> NDArray[np.int64]:
        num_rows = int(self._window_starts[window + 1] - self._window_starts[window])
        if self._seed is None:
            return np.arange(num_rows)
        first_group = int(self._groups[self._windows[window]])
        # Not first_group: numpy pads seeds with zeros, and [seed, epoch] shuffles the groups.
        return np.random.default_rng([self._seed, self._epoch, first_group + 1]).permutation(num_rows)


def _windows(starts: NDArray[np.int64], at_least: int) -> NDArray[np.int64]:
    """The first group of each window, and the number of groups; a window has `at_least` so many rows, less the last."""
    first, windows = 0, [0]
    while first < len(starts) - 1:
        first = max(first + 1, int(np.searchsorted(starts, starts[first] + at_least)))
        first = min(first, len(starts) - 1)
        windows.append(first)
    return np.asarray(windows)
