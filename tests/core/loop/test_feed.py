"""The batches of each step in a world of one. tests/distributed/ranks/test_feed.py covers several ranks."""

from collections.abc import Iterator
from typing import Any

import pytest

from common.distributed.consensus import RankConsensus, RankFlag
from common.reader.files import DataError
from common.reader.reader import PositionedBatch
from core.loop import feed as feed_module
from core.loop.feed import StepFeed
from core.loop.window import Stopwatch
from tests.support.numbered_batches import batches, numbers


class Flags:
    """The flags that this rank sends, and those that it receives."""

    def __init__(self) -> None:
        self.own = RankFlag.NONE
        self.received: list[RankFlag] = []

    def feed(self, source: Iterator[PositionedBatch[Any]], *, num_micro_batches: int, num_steps: int) -> StepFeed:
        return StepFeed(
            source,
            RankConsensus(),
            Stopwatch(),
            own_flags=lambda: self.own,
            on_flags=self.received.append,
            num_micro_batches=num_micro_batches,
            num_steps=num_steps,
            prefetch_batches=8,
        )


def feed(source: Iterator[PositionedBatch[Any]], *, num_micro_batches: int, num_steps: int) -> StepFeed:
    return Flags().feed(source, num_micro_batches=num_micro_batches, num_steps=num_steps)


@pytest.fixture(autouse=True)
def _one_exchange_per_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "_SECONDS_PER_EXCHANGE", 1e-9)


def test_each_step_gets_its_micro_batches_and_no_more_are_read() -> None:
    source = batches(10)
    steps = feed(source, num_micro_batches=3, num_steps=3)
    assert [numbers(steps.next()) for _ in range(3)] == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert next(source).batch == 9


def test_nothing_is_read_before_the_first_step_is_requested() -> None:
    source = batches(3)
    steps = feed(source, num_micro_batches=1, num_steps=2)
    assert next(source).batch == 0
    assert numbers(steps.next()) == [1]


def test_the_next_step_is_read_while_the_current_one_is_trained() -> None:
    source = batches(4)
    steps = feed(source, num_micro_batches=1, num_steps=3)
    assert numbers(steps.next()) == [0]
    assert next(source).batch == 2, "batch 1 is held ready"
    assert numbers(steps.next()) == [1]


def test_bad_data_is_raised_at_its_step_and_not_before() -> None:
    steps = feed(batches(10, bad=5), num_micro_batches=2, num_steps=5)
    assert [numbers(steps.next()) for _ in range(2)] == [[0, 1], [2, 3]]
    with pytest.raises(DataError, match="batch 5 is bad"):
        steps.next()


def test_a_stop_flag_ends_the_feed_after_the_step_that_was_ready() -> None:
    flags = Flags()
    steps = flags.feed(batches(10), num_micro_batches=1, num_steps=10)
    assert numbers(steps.next()) == [0]
    flags.own = RankFlag.STOP
    assert numbers(steps.next()) == [1]
    assert steps.next() is None
    assert flags.received == [RankFlag.NONE] * 2, "a stop is not passed on"


def test_other_flags_are_passed_on_with_the_step_that_they_were_sent_with() -> None:
    flags = Flags()
    steps = flags.feed(batches(10), num_micro_batches=1, num_steps=3)
    flags.own = RankFlag.NONFINITE
    steps.next()
    assert flags.received == [RankFlag.NONFINITE]
    flags.own = RankFlag.NONE
    steps.next()
    steps.next()
    assert flags.received == [RankFlag.NONFINITE, RankFlag.NONFINITE, RankFlag.NONE]


def test_fast_steps_share_an_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps that take no time share one exchange, as far as the reader has batches ready."""
    monkeypatch.setattr(feed_module, "_SECONDS_PER_EXCHANGE", 1e9)
    flags = Flags()
    steps = flags.feed(batches(20), num_micro_batches=2, num_steps=10)
    assert [numbers(steps.next()) for _ in range(10)] == [[2 * i, 2 * i + 1] for i in range(10)]
    # 8 batches are ready: 4 steps. The first three exchanges are about one step each, before the pace is known.
    assert len(flags.received) == 1 + 1 + 1 + 2
