import itertools

import pytest
import torch

from core.loop.skipped_steps import SkippedStepCounter
from tests.support.toy import CPU


def counted(outcomes: str, limit: int, step: int = 0, in_a_row: int = 0) -> SkippedStepCounter:
    """Count one step per letter. An x is a skipped update."""
    counter = SkippedStepCounter(CPU, limit, step, in_a_row)
    for outcome in outcomes:
        counter.add(torch.tensor(float(outcome == "x")))
    return counter


def test_more_skipped_steps_in_a_row_than_the_limit_are_too_many() -> None:
    assert counted("..xxx.xxx", 3).too_many is None
    assert counted("..xxxx", 3).too_many == range(3, 7)
    assert counted("x", 0).too_many == range(1, 2)
    assert counted("....", 0).too_many is None


def test_the_first_steps_beyond_the_limit_are_kept() -> None:
    counter = counted("..xxxxx..xxxxxxxx", 3)
    assert counter.too_many == range(3, 7)
    assert counter.poll()
    assert counter.settle() == 8


@pytest.mark.parametrize("cut", range(9))
def test_a_count_continues_where_it_was_interrupted(cut: int) -> None:
    outcomes = "x..xxxx.."
    before = counted(outcomes[:cut], 3)
    after = counted(outcomes[cut:], 3, cut, before.settle())
    assert (before.too_many or after.too_many) == range(4, 8)
    assert after.settle() == 0


def test_a_resumed_count_above_the_limit_ends_with_the_next_skipped_step() -> None:
    assert counted("", 3, 50, 10).too_many is None
    assert counted(".x", 3, 50, 10).too_many is None
    assert counted("x", 3, 50, 10).too_many == range(41, 52)


def test_the_count_equals_a_slow_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    outcomes = "".join(".x"[i] for i in (torch.rand(400, generator=generator) < 0.7).int().tolist())
    runs = [(key, len(list(group))) for key, group in itertools.groupby(outcomes)]
    longest = max(length for key, length in runs if key == "x")
    assert counted(outcomes, longest).too_many is None
    assert counted(outcomes, longest - 1).too_many is not None
