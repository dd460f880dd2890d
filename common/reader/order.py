"""Defines the order of examples, a function of (seed, epoch) that does not depend on the number of ranks.

An epoch is one sequence of all rows. The row groups are shuffled and divided into spans of one or more row groups, and
the rows within each span are shuffled. The sequence is divided into L lanes, each a contiguous part of it. A global
batch of B rows takes the next B/L rows of every lane. Rank r of R reads only lanes r, r+R, ..., so any number of ranks
that divides L trains on the same global batches. Lanes share a span if they begin or end inside it.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.errors import ConfigError


@dataclass(frozen=True)
class Position:
    """A position in the data: the epoch, counted from 0, and the number of its rows taken from each lane."""

    epoch: int
    cursors: tuple[int, ...]

    @classmethod
    def start(cls, lanes: int) -> "Position":
        """Return the position before the first row."""
        return cls(0, (0,) * lanes)


@dataclass(frozen=True)
class Piece:
    """Rows of one row group, in reading order."""

    group: int
    rows: NDArray[np.int64]


def check_lanes(lanes: int, global_batch_size: int, world_size: int) -> None:
    """Raise ConfigError unless the lanes divide the global batch and the ranks divide the lanes."""
    if global_batch_size % lanes:
        raise ConfigError(
            f"global_batch_size {global_batch_size} is not a multiple of lanes {lanes}: "
            "a global batch takes the same number of rows from every lane; change one of them"
        )
    if lanes % world_size:
        raise ConfigError(
            f"lanes {lanes} is not a multiple of the world size {world_size}: "
            "every rank reads the same number of lanes; "
            f"set lanes to a multiple of {world_size} that divides global_batch_size {global_batch_size}"
            + ("" if global_batch_size % world_size == 0 else f" (which is itself not a multiple of {world_size})")
        )


class Order:
    """The rows of one epoch, divided into lanes."""

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
        """Divide an epoch into lanes.

        Args:
          rows_per_group: number of rows of each row group, [groups], int64.
          lanes: number of lanes, a divisor of rows_per_batch.
          rows_per_batch: rows that a global batch takes from all lanes together.
          seed: seed of the shuffle; None for stored order.
          epoch: number of the epoch, counted from 0.
          drop_last: drop the rows that do not fill a global batch, so that all lanes have the same number of rows.
            Otherwise every row is read once, and the lengths of lanes differ by at most one row.
          shuffle_window: minimum number of rows that are shuffled together; a span is the whole row groups that
            provide them.
        """
        groups = np.arange(len(rows_per_group))
        if seed is not None:
            groups = np.random.default_rng([seed, epoch]).permutation(groups)
        self._groups = groups
        # Row `_starts[i]` of the sequence is the first row of the i-th group.
        self._starts = np.concatenate([[0], np.cumsum(rows_per_group[groups])])
        self._spans = _spans(self._starts, shuffle_window if seed is not None else 1)
        self._span_starts = self._starts[self._spans]
        num_rows = int(self._starts[-1])
        self.rows_per_take = rows_per_batch // lanes
        if drop_last:
            self.num_batches = num_rows // rows_per_batch
            self._bounds = np.arange(lanes + 1) * (self.num_batches * self.rows_per_take)
        else:
            self._bounds = np.arange(lanes + 1) * num_rows // lanes
            self.num_batches = -(-int(np.diff(self._bounds).max()) // self.rows_per_take)
        # A lane returns to its span at every batch; at most two spans per lane are in use. The cache does not hold this
        # object: in a reference cycle, the row orders of finished epochs would stay in memory.
        self._row_order = functools.lru_cache(maxsize=2 * lanes)(functools.partial(_row_order, seed, epoch))

    def lane_length(self, lane: int) -> int:
        """Return the number of rows of a lane in this epoch."""
        return int(self._bounds[lane + 1] - self._bounds[lane])

    def spans(self, lane: int, cursor: int) -> range:
        """Return the spans that contain a lane's next rows after `cursor` rows, and the span after them."""
        begin, end = self._next_rows(lane, cursor)
        if begin == end:
            return range(0)
        first = self._span_of(begin)
        beyond_lane = self._span_of(int(self._bounds[lane + 1]) - 1) + 1
        return range(first, min(self._span_of(end - 1) + 2, beyond_lane))

    def groups(self, span: int) -> list[int]:
        """Return the row groups of a span."""
        return [int(group) for group in self._groups[self._spans[span] : self._spans[span + 1]]]

    def pieces(self, lane: int, cursor: int) -> Iterator[Piece]:
        """Yield a lane's rows of the next batch after `cursor` rows, by row group; fewer at the end of the lane."""
        begin, end = self._next_rows(lane, cursor)
        while begin < end:
            span = self._span_of(begin)
            start, stop = int(self._span_starts[span]), min(end, int(self._span_starts[span + 1]))
            num_rows = int(self._span_starts[span + 1]) - start
            row_order = self._row_order(int(self._groups[self._spans[span]]), num_rows)
            yield from self._by_group(span, row_order[begin - start : stop - start])
            begin = stop

    def _next_rows(self, lane: int, cursor: int) -> tuple[int, int]:
        begin = int(min(self._bounds[lane] + cursor, self._bounds[lane + 1]))
        return begin, int(min(begin + self.rows_per_take, self._bounds[lane + 1]))

    def _span_of(self, row: int) -> int:
        """Return the span that contains a row of the sequence."""
        return int(np.searchsorted(self._span_starts, row, side="right")) - 1

    def _by_group(self, span: int, rows: NDArray[np.int64]) -> Iterator[Piece]:
        """Yield rows of a span, which are counted from its first row, as rows of its row groups."""
        first, last = int(self._spans[span]), int(self._spans[span + 1])
        if last - first == 1:
            yield Piece(int(self._groups[first]), rows)
            return
        starts = self._starts[first:last] - self._starts[first]
        index = np.searchsorted(starts, rows, side="right") - 1
        for group in np.unique(index):
            yield Piece(int(self._groups[first + group]), rows[index == group] - starts[group])


def _row_order(seed: int | None, epoch: int, first_group: int, num_rows: int) -> NDArray[np.int64]:
    """Return the order of the rows of a span: [num_rows], counted from its first row."""
    if seed is None:
        return np.arange(num_rows)
    # The + 1 keeps this seed different from that of the groups: numpy pads [seed, epoch] with zeros.
    return np.random.default_rng([seed, epoch, first_group + 1]).permutation(num_rows)


def _spans(starts: NDArray[np.int64], min_rows: int) -> NDArray[np.int64]:
    """Return the first group of each span, followed by the number of groups.

    Every span has at least `min_rows` rows, except possibly the last.
    """
    first, spans = 0, [0]
    while first < len(starts) - 1:
        first = max(first + 1, int(np.searchsorted(starts, starts[first] + min_rows)))
        first = min(first, len(starts) - 1)
        spans.append(first)
    return np.asarray(spans)
