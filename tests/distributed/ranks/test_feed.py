"""Ranks agree on the next steps, even if steps are fast and one exchange of flags covers several of them."""

import signal
from typing import Any

import pytest
import torch

from common.distributed.consensus import RankConsensus, RankFlag
from common.distributed.world import World
from common.process.stop_signals import StopSignals
from common.reader.files import DataError
from common.reader.prefetch import Prefetcher
from core.loop import feed as feed_module
from core.loop.feed import StepFeed
from core.loop.skipped_steps import SkippedStepCounter
from core.loop.window import Stopwatch
from tests.support.numbered_batches import batches, numbers
from tests.support.ranks import run_ranks
from tests.support.toy import CPU

pytestmark = pytest.mark.faults

STEPS = 200


class CountingConsensus(RankConsensus):
    """Counts the exchanges of flags."""

    count = 0

    def begin(self, own: RankFlag, pace: int = 1) -> None:
        self.count += 1
        super().begin(own, pace)


class LateStepCounter(SkippedStepCounter):
    """Receives the outcome of a step three polls later, or in settle(), as from a slow device.

    Args:
      never: True to receive outcomes in settle() only.
    """

    def __init__(self, never: bool) -> None:
        super().__init__(CPU, 100, 0)
        self._never = never
        self._delayed: list[tuple[int, torch.Tensor]] = []

    def add(self, skipped: torch.Tensor) -> None:
        self._delayed.append((3, skipped))

    def poll(self) -> bool:
        self._delayed = [(polls - 1, skipped) for polls, skipped in self._delayed]
        while self._delayed and self._delayed[0][0] <= 0 and not self._never:
            self._count(self._delayed.pop(0)[1].item())
        return super().poll()

    def settle(self) -> int:
        while self._delayed:
            self._count(self._delayed.pop(0)[1].item())
        return super().settle()


def worker(world: World) -> dict[str, Any]:
    found: dict[str, Any] = {}
    feed_module._SECONDS_PER_EXCHANGE = 3600.0  # so that steps count as fast on every machine

    def run(
        name: str,
        bad: int | None = None,
        error: type[Exception] = DataError,
        stop_at: int | None = None,
        slow: bool = False,
    ) -> None:
        """Take all steps. Only rank 1 has bad data, fails in its reader's thread, is asked to stop, or learns of
        skipped updates from rank 0 only.

        Args:
          name: key of the result.
          bad: index of the batch that rank 1 cannot read.
          error: raised by that batch.
          stop_at: number of steps after which rank 1 is asked to stop.
          slow: True to skip every update after 20 steps, with outcomes that arrive late.
        """
        consensus, stop = CountingConsensus(world.rank, world.size), StopSignals()
        source = Prefetcher(batches(STEPS, bad if world.rank == 1 else None, error), 8)
        skipped = LateStepCounter(never=slow and world.rank == 1) if slow else SkippedStepCounter(CPU, 100, 0)

        def own_flags() -> RankFlag:
            flags = RankFlag.STOP if stop.received is not None else RankFlag.NONE
            return flags | (RankFlag.NONFINITE if skipped.poll() else RankFlag.NONE)

        def on_flags(flags: RankFlag) -> None:
            if RankFlag.NONFINITE in flags:
                skipped.settle()

        feed = StepFeed(
            source,
            consensus,
            Stopwatch(),
            own_flags=own_flags,
            on_flags=on_flags,
            num_micro_batches=1,
            num_steps=STEPS,
            prefetch_batches=8,
        )
        got: list[int] = []
        ended = "finished"
        try:
            while len(got) < STEPS:
                if (positioned := feed.next()) is None:
                    ended = "stopped"
                    break
                got += numbers(positioned)
                skipped.add(torch.tensor(float(len(got) > 20)))
                if slow and skipped.too_many is not None:
                    ended = f"non-finite: {skipped.too_many}"
                    break
                if world.rank == 1 and len(got) == stop_at:
                    stop.received = signal.SIGTERM
        except Exception as raised:
            ended = f"{type(raised).__name__}: {raised}"
        found[name] = {"got": got, "ended": ended, "exchanges": consensus.count}

    run("whole")
    run("bad", bad=100)
    run("a bug", bad=100, error=ZeroDivisionError)
    run("stopped", stop_at=100)
    run("non-finite", slow=True)
    return found


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, Any]]:
    return run_ranks(worker)


def test_every_step_is_taken_with_far_fewer_exchanges(ranks):
    for found in ranks:
        assert found["whole"]["got"] == list(range(STEPS))
        assert found["whole"]["ended"] == "finished"
        assert found["whole"]["exchanges"] == ranks[0]["whole"]["exchanges"] < STEPS / 4


def test_all_ranks_end_at_the_same_step_with_the_error_of_one(ranks):
    got = [found["bad"]["got"] for found in ranks]
    assert [found["bad"]["ended"] for found in ranks] == ["DataError: batch 100 is bad"] * 2
    assert got[0] == got[1] == list(range(len(got[0])))
    assert 90 <= len(got[0]) <= 100


def test_a_bug_in_the_reader_of_one_rank_ends_all_ranks_at_the_same_step(ranks):
    got = [found["a bug"]["got"] for found in ranks]
    rank_0, rank_1 = (found["a bug"]["ended"] for found in ranks)
    assert rank_1 == "ZeroDivisionError: batch 100 is bad"
    for fact in ("RankFailedError: ", "rank 1", "traceback", rank_1):
        assert fact in rank_0
    assert got[0] == got[1] == list(range(len(got[0])))
    assert 90 <= len(got[0]) <= 100


def test_all_ranks_stop_at_the_same_step_soon_after_the_signal_to_one(ranks):
    got = [found["stopped"]["got"] for found in ranks]
    assert [found["stopped"]["ended"] for found in ranks] == ["stopped"] * 2
    assert got[0] == got[1] == list(range(len(got[0])))
    assert 100 <= len(got[0]) <= 120


def test_all_ranks_learn_of_too_many_skipped_updates_at_the_same_step(ranks):
    """Steps 21 to 121 are the first 101 in a row. Rank 1 learns it from rank 0 only."""
    got = [found["non-finite"]["got"] for found in ranks]
    assert [found["non-finite"]["ended"] for found in ranks] == [f"non-finite: {range(21, 122)}"] * 2
    assert got[0] == got[1]
    assert 121 <= len(got[0]) <= 170
