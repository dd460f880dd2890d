"""Several ranks agree on what the next steps are, though a word is about several of them where steps are fast."""

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
from tests.core.loop.test_feed import batches, numbers
from tests.support.ranks import run_ranks
from tests.support.toy import CPU

STEPS = 200


class CountingWord(RankConsensus):
    count = 0

    def begin(self, own: RankFlag, pace: int = 1) -> None:
        self.count += 1
        super().begin(own, pace)


class LateSteps(SkippedStepCounter):
    """Learns of a step's outcome at the third poll after it, as a device tells late, or where it waits."""

    def __init__(self, never: bool) -> None:
        super().__init__(CPU, 100, 0)
        self._never = never
        self._untold: list[tuple[int, torch.Tensor]] = []

    def add(self, skipped: torch.Tensor) -> None:
        self._untold.append((3, skipped))

    def poll(self) -> bool:
        self._untold = [(polls - 1, skipped) for polls, skipped in self._untold]
        while self._untold and self._untold[0][0] <= 0 and not self._never:
            self._count(self._untold.pop(0)[1].item())
        return super().poll()

    def settle(self) -> int:
        while self._untold:
            self._count(self._untold.pop(0)[1].item())
        return super().settle()


def worker(world: World) -> dict[str, Any]:
    found: dict[str, Any] = {}
    feed_module._SECONDS_PER_EXCHANGE = 3600.0  # however slow this machine is, its steps are fast

    def run(
        name: str,
        bad: int | None = None,
        error: type[Exception] = DataError,
        stop_at: int | None = None,
        slow: bool = False,
    ) -> None:
        """Rank 1 alone meets bad data, fails in its reader's thread or is asked to stop; or it alone doesn't learn by
        itself what went wrong."""
        word, stop = CountingWord(world.rank, world.size), StopSignals()
        source = Prefetcher(batches(STEPS, bad if world.rank == 1 else None, error), 8)
        nonfinite = LateSteps(never=slow and world.rank == 1) if slow else SkippedStepCounter(CPU, 100, 0)

        def own_flags() -> RankFlag:
            flags = RankFlag.STOP if stop.received is not None else RankFlag.NONE
            return flags | (RankFlag.NONFINITE if nonfinite.poll() else RankFlag.NONE)

        def on_flags(flags: RankFlag) -> None:
            if RankFlag.NONFINITE in flags:
                nonfinite.settle()

        feed = StepFeed(
            source,
            word,
            Stopwatch(),
            own_flags=own_flags,
            on_flags=on_flags,
            micro_batches=1,
            num_steps=STEPS,
            prefetch_batches=8,
        )
        got: list[int] = []
        ended = "finished"
        try:
            while len(got) < STEPS:
                if (placed := feed.next()) is None:
                    ended = "stopped"
                    break
                got += numbers(placed)
                nonfinite.add(torch.tensor(float(len(got) > 20)))
                if slow and nonfinite.too_many is not None:
                    ended = f"not finite: {nonfinite.too_many}"
                    break
                if world.rank == 1 and len(got) == stop_at:
                    stop.received = signal.SIGTERM
        except Exception as raised:
            ended = f"{type(raised).__name__}: {raised}"
        found[name] = {"got": got, "ended": ended, "words": word.count}

    run("whole")
    run("bad", bad=100)
    run("a bug", bad=100, error=ZeroDivisionError)
    run("stopped", stop_at=100)
    run("not finite", slow=True)
    return found


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, Any]]:
    return run_ranks(worker)


def test_every_step_is_made_with_far_fewer_words(ranks):
    for found in ranks:
        assert found["whole"]["got"] == list(range(STEPS))
        assert found["whole"]["ended"] == "finished"
        assert found["whole"]["words"] == ranks[0]["whole"]["words"] < STEPS / 4


def test_all_ranks_leave_at_the_same_step_with_the_error_of_one(ranks):
    got = [found["bad"]["got"] for found in ranks]
    assert [found["bad"]["ended"] for found in ranks] == ["DataError: batch 100 is bad"] * 2
    assert got[0] == got[1] == list(range(len(got[0])))
    assert 90 <= len(got[0]) <= 100


def test_a_bug_in_the_reader_of_one_rank_is_told_to_all_at_the_same_step(ranks):
    got = [found["a bug"]["got"] for found in ranks]
    told = "ZeroDivisionError: batch 100 is bad"
    other = f"RankFailedError: rank 1 failed, its output has the traceback: {told}"
    assert [found["a bug"]["ended"] for found in ranks] == [other, told]
    assert got[0] == got[1] == list(range(len(got[0])))
    assert 90 <= len(got[0]) <= 100


def test_all_ranks_stop_at_the_same_step_soon_after_the_signal_to_one(ranks):
    got = [found["stopped"]["got"] for found in ranks]
    assert [found["stopped"]["ended"] for found in ranks] == ["stopped"] * 2
    assert got[0] == got[1] == list(range(len(got[0])))
    assert 100 <= len(got[0]) <= 120


def test_all_ranks_learn_of_too_many_nonfinite_steps_at_the_same_one(ranks):
    """Steps 21 to 121 are the first 101 in a row; rank 1 would not have learnt it by itself."""
    got = [found["not finite"]["got"] for found in ranks]
    assert [found["not finite"]["ended"] for found in ranks] == [f"not finite: {range(21, 122)}"] * 2
    assert got[0] == got[1]
    assert 121 <= len(got[0]) <= 170
