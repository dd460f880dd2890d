"""What each training step gets: its micro-batches, once all ranks have agreed that all of them can make it."""

import collections
import time
from collections.abc import Iterator
from typing import Any

from common.distributed.consensus import RankConsensus, RankFlag
from common.process.stop_signals import StopSignals
from common.reader.prefetch import next_or_error
from common.reader.reader import PositionedBatch
from core.loop.skipped_steps import SkippedStepCounter
from core.loop.window import Stopwatch

# Where steps take less than this, one consensus flags is about several of them: on two ranks each costs 0.5 ms.
_WORD_EVERY_S = 0.02


class StepFeed:
    """Hands out the micro-batches of one step after the other. Collective.

    The consensus flags about the next steps travels while the steps at hand are made.
    """

    def __init__(
        self,
        batches: Iterator[PositionedBatch[Any]],
        consensus: RankConsensus,
        stop: StopSignals,
        watch: Stopwatch,
        nonfinite: SkippedStepCounter,
        *,
        micro_batches: int,
        num_steps: int,
        prefetch_batches: int,
    ) -> None:
        """Fetches the first step's.

        Args:
          batches: of this rank; as many as the steps take, at least.
          consensus: tells the other ranks.
          stop: whether this rank was asked to stop.
          watch: is told the time spent waiting for batches.
          nonfinite: where a rank knows of too many, all count up to the same step.
          micro_batches: of a step.
          num_steps: to hand out in all.
          prefetch_batches: that the reader holds ready.
        """
        self._batches = batches
        self._consensus = consensus
        self._stop = stop
        self._watch = watch
        self._nonfinite = nonfinite
        self._micro_batches = micro_batches
        self._unfetched = num_steps
        # No more steps than there are batches ready for: training would wait for the others.
        self._most_steps = max(1, prefetch_batches // micro_batches)
        self._ready: collections.deque[list[PositionedBatch[Any]]] = collections.deque()
        self._began = time.perf_counter()
        self._seconds_per_step = _WORD_EVERY_S
        self._pace = 1
        self._num_ready = 1
        self._upcoming: list[list[PositionedBatch[Any]]] | Exception = []
        if num_steps > 0:
            self._fetch(1)

    def next(self) -> list[PositionedBatch[Any]] | None:
        """The next step's micro-batches; None where a rank was asked to stop, on all ranks.

        Raises:
          UserError: a rank's data is bad; on all ranks.
          Exception: this rank's reader failed; a RankFailedError on the other ranks.
        """
        if not self._ready:
            word, pace = self._consensus.result_and_pace()
            if RankFlag.BAD_DATA in word:
                self._consensus.raise_on_all_ranks(self._upcoming if isinstance(self._upcoming, Exception) else None)
            if RankFlag.STOP in word:
                return None
            if RankFlag.NONFINITE in word:
                self._nonfinite.settle()
            assert not isinstance(self._upcoming, Exception)
            now = time.perf_counter()
            self._seconds_per_step = (now - self._began) / self._num_ready
            self._began, self._pace, self._num_ready = now, pace, len(self._upcoming)
            self._ready.extend(self._upcoming)
        micro_batches = self._ready.popleft()
        if not self._ready and self._unfetched > 0:
            self._fetch(min(self._pace, self._unfetched))
        return micro_batches

    def _fetch(self, num_steps: int) -> None:
        """Takes the next steps' micro-batches, or what went wrong instead, and sends this rank's part of the word."""
        started = time.perf_counter()
        steps: list[list[PositionedBatch[Any]]] = []
        error: Exception | None = None
        while len(steps) < num_steps and error is None:
            step: list[PositionedBatch[Any]] = []
            while len(step) < self._micro_batches and error is None:
                item = next_or_error(self._batches)
                if isinstance(item, Exception):
                    error = item
                else:
                    assert item is not None, "the number of batches was counted before"
                    step.append(item)
            steps.append(step)
        self._upcoming = steps if error is None else error
        self._unfetched -= num_steps
        self._watch.waited(time.perf_counter() - started)
        word = RankFlag.BAD_DATA if error is not None else RankFlag.NONE
        if self._stop.received is not None:
            word |= RankFlag.STOP
        if self._nonfinite.poll():
            word |= RankFlag.NONFINITE
        self._consensus.begin(word, pace=max(1, min(int(_WORD_EVERY_S / self._seconds_per_step), self._most_steps)))
