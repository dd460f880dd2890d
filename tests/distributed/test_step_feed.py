"""Several ranks agree on what the next steps are, though a word is about several of them where steps are fast."""

import signal
from typing import Any

import pytest

from common.agreement import Control, ControlWord, StopSignals
from common.device import World
from core import step_feed
from core.config.base_config import UserError
from core.step_feed import StepFeed
from core.train_window import Stopwatch
from tests.core.test_step_feed import batches, numbers
from tests.distributed.harness import run_ranks

STEPS = 200


class CountingWord(ControlWord):
    count = 0

    def begin(self, own: Control, pace: int = 1) -> None:
        self.count += 1
        super().begin(own, pace)


def worker(world: World) -> dict[str, Any]:
    found: dict[str, Any] = {}
    step_feed._WORD_EVERY_S = 3600.0  # however slow this machine is, its steps are fast

    def run(name: str, bad: int | None = None, stop_at: int | None = None) -> None:
        """Rank 1 alone meets bad data or is asked to stop."""
        word, stop = CountingWord(), StopSignals()
        source = batches(STEPS, bad if world.rank == 1 else None)
        feed = StepFeed(source, word, stop, Stopwatch(), micro_batches=1, num_steps=STEPS, prefetch_batches=8)
        got: list[int] = []
        ended = "finished"
        try:
            while len(got) < STEPS:
                if (placed := feed.next()) is None:
                    ended = "stopped"
                    break
                got += numbers(placed)
                if world.rank == 1 and len(got) == stop_at:
                    stop.received = signal.SIGTERM
        except UserError as error:
            ended = str(error)
        found[name] = {"got": got, "ended": ended, "words": word.count}

    run("whole")
    run("bad", bad=100)
    run("stopped", stop_at=100)
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
    assert [found["bad"]["ended"] for found in ranks] == ["batch 100 is bad"] * 2
    assert got[0] == got[1] == list(range(len(got[0])))
    assert 90 <= len(got[0]) <= 100


def test_all_ranks_stop_at_the_same_step_soon_after_the_signal_to_one(ranks):
    got = [found["stopped"]["got"] for found in ranks]
    assert [found["stopped"]["ended"] for found in ranks] == ["stopped"] * 2
    assert got[0] == got[1] == list(range(len(got[0])))
    assert 100 <= len(got[0]) <= 120
