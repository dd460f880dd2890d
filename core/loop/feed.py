"""Hands out the micro-batches of each training step, once all ranks have agreed that every rank can train it."""

import collections
import time
from collections.abc import Callable, Iterator
from typing import Any

from common.distributed.consensus import RankConsensus, RankFlag
from common.reader.prefetch import next_or_error
from common.reader.reader import PositionedBatch
from core.loop.window import Stopwatch

# Ranks exchange flags about several steps at once if the steps together take less than this, in seconds. On two ranks,
# each exchange takes 0.5 ms.
_SECONDS_PER_EXCHANGE = 0.02


class StepFeed:
    """Hands out micro-batches, one step at a time. Collective.

    The ranks exchange flags about the next steps while they train the current ones.
    """

    def __init__(
        self,
        batches: Iterator[PositionedBatch[Any]],
        consensus: RankConsensus,
        stopwatch: Stopwatch,
        *,
        own_flags: Callable[[], RankFlag],
        on_flags: Callable[[RankFlag], None],
        num_micro_batches: int,
        num_steps: int,
        prefetch_batches: int,
    ) -> None:
        """Initialize without reading or communication.

        Args:
          batches: batches of this rank, enough for all steps.
          consensus: combines the flags of all ranks.
          stopwatch: receives the time spent waiting for batches.
          own_flags: returns additional flags of this rank to send. STOP ends the feed on all ranks.
          on_flags: receives the combined flags of all ranks, at the same step on all ranks.
          num_micro_batches: number of micro-batches per step.
          num_steps: number of steps to hand out.
          prefetch_batches: number of batches that the reader holds ready.
        """
        self._batches = batches
        self._consensus = consensus
        self._stopwatch = stopwatch
        self._own_flags = own_flags
        self._on_flags = on_flags
        self._num_micro_batches = num_micro_batches
        self._unfetched = num_steps
        # Fetching more steps than the reader has batches ready for would make training wait for them.
        self._most_steps = max(1, prefetch_batches // num_micro_batches)
        self._ready: collections.deque[list[PositionedBatch[Any]]] = collections.deque()
        self._exchanged_at: float | None = None
        self._seconds_per_step = _SECONDS_PER_EXCHANGE
        self._pace = 1
        self._num_ready = 1
        self._upcoming: list[list[PositionedBatch[Any]]] | Exception = []
        self._has_begun = False

    def next(self) -> list[PositionedBatch[Any]] | None:
        """Return the next step's micro-batches, or None on all ranks if a rank was asked to stop.

        Raises:
          UserError: a rank's data is invalid. All ranks raise it.
          Exception: this rank's reader failed. The other ranks raise a RankFailedError.
        """
        if not self._has_begun:
            self._has_begun = True
            self._fetch(1)
        if not self._ready:
            flags, pace = self._consensus.result_and_pace()
            if RankFlag.BAD_DATA in flags:
                self._consensus.raise_on_all_ranks(self._upcoming if isinstance(self._upcoming, Exception) else None)
            if RankFlag.STOP in flags:
                return None
            self._on_flags(flags)
            assert not isinstance(self._upcoming, Exception)
            now = time.perf_counter()
            if self._exchanged_at is not None:  # the first time, no step was trained yet
                self._seconds_per_step = (now - self._exchanged_at) / self._num_ready
            self._exchanged_at, self._pace, self._num_ready = now, pace, len(self._upcoming)
            self._ready.extend(self._upcoming)
        micro_batches = self._ready.popleft()
        if not self._ready and self._unfetched > 0:
            self._fetch(min(self._pace, self._unfetched))
        return micro_batches

    def _fetch(self, num_steps: int) -> None:
        """Fetch the micro-batches of the next steps, or the error instead, and send this rank's flags."""
        started = time.perf_counter()
        try:
            self._upcoming = [self._fetch_step() for _ in range(num_steps)]
            flags = RankFlag.NONE
        except Exception as error:
            self._upcoming, flags = error, RankFlag.BAD_DATA
        self._unfetched -= num_steps
        self._stopwatch.waited(time.perf_counter() - started)
        pace = max(1, min(int(_SECONDS_PER_EXCHANGE / self._seconds_per_step), self._most_steps))
        self._consensus.begin(flags | self._own_flags(), pace=pace)

    def _fetch_step(self) -> list[PositionedBatch[Any]]:
        step = []
        for _ in range(self._num_micro_batches):
            item = next_or_error(self._batches)
            if isinstance(item, Exception):
                raise item
            assert item is not None, "the last step was computed from the number of batches"
            step.append(item)
        return step
