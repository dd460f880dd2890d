"""What a step gets in a world of one; tests/distributed/ranks/test_feed.py has the agreement of several ranks."""

import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from common.distributed.consensus import RankConsensus
from common.process.stop_signals import StopSignals
from common.reader.files import DataError
from common.reader.order import Position
from common.reader.reader import PositionedBatch
from core.loop import feed as feed_module
from core.loop.feed import StepFeed
from core.loop.skipped_steps import SkippedStepCounter
from core.loop.window import Stopwatch
from tests.support.toy import CPU


def batches(
    count: int, bad: int | None = None, error: Callable[[str], Exception] = DataError
) -> Iterator[PositionedBatch[Any]]:
    """Batches that are numbers; at `bad` there is none to be had."""
    for number in range(count):
        if number == bad:
            raise error(f"batch {number} is bad")
        yield PositionedBatch(number, Position(0, (number + 1,)))


def feed(source: Iterator[PositionedBatch[Any]], *, micro_batches: int, num_steps: int, stop: StopSignals) -> StepFeed:
    return StepFeed(
        source,
        RankConsensus(),
        stop,
        Stopwatch(),
        SkippedStepCounter(CPU, 100, 0),
        micro_batches=micro_batches,
        num_steps=num_steps,
        prefetch_batches=8,
    )


@pytest.fixture(autouse=True)
def _a_word_for_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "_WORD_EVERY_S", 1e-9)


def numbers(placed: list[PositionedBatch[Any]] | None) -> list[int]:
    assert placed is not None
    return [item.batch for item in placed]


def test_every_step_gets_its_micro_batches_and_no_more_are_taken():
    source = batches(10)
    steps = feed(source, micro_batches=3, num_steps=3, stop=StopSignals())
    assert [numbers(steps.next()) for _ in range(3)] == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert next(source).batch == 9


def test_nothing_is_taken_where_nothing_is_to_be_done():
    source = batches(1)
    feed(source, micro_batches=1, num_steps=0, stop=StopSignals())
    assert next(source).batch == 0


def test_bad_data_is_raised_at_its_step_and_not_before():
    steps = feed(batches(10, bad=5), micro_batches=2, num_steps=5, stop=StopSignals())
    assert [numbers(steps.next()) for _ in range(2)] == [[0, 1], [2, 3]]
    with pytest.raises(DataError, match="batch 5 is bad"):
        steps.next()


def test_a_signal_ends_after_the_step_whose_batches_were_there():
    stop = StopSignals()
    steps = feed(batches(10), micro_batches=1, num_steps=10, stop=stop)
    assert numbers(steps.next()) == [0]
    stop.received = signal.SIGTERM
    assert numbers(steps.next()) == [1]
    assert steps.next() is None
