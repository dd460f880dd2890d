import itertools

import pytest
import torch

from core.loop.skipped_steps import SkippedStepCounter
from tests.support.toy import CPU


def counted(outcomes: str, most: int, step: int = 0, in_a_row: int = 0) -> SkippedStepCounter:
    """Of a step for each letter: x was left out."""
    steps = SkippedStepCounter(CPU, most, step, in_a_row)
    for outcome in outcomes:
        steps.add(torch.tensor(float(outcome == "x")))
    return steps


def test_more_than_most_in_a_row_are_too_many():
    assert counted("..xxx.xxx", 3).too_many is None
    assert counted("..xxxx", 3).too_many == range(3, 7)
    assert counted("x", 0).too_many == range(1, 2)
    assert counted("....", 0).too_many is None


def test_the_first_that_were_too_many_are_told_whatever_comes_after():
    steps = counted("..xxxxx..xxxxxxxx", 3)
    assert steps.too_many == range(3, 7)
    assert steps.settle() == 8


@pytest.mark.parametrize("cut", range(9))
def test_a_count_goes_on_where_it_was_cut(cut):
    outcomes = "x..xxxx.."
    before = counted(outcomes[:cut], 3)
    after = counted(outcomes[cut:], 3, cut, before.settle())
    assert (before.too_many or after.too_many) == range(4, 8)
    assert after.settle() == 0


def test_a_resumed_count_that_is_too_high_already_ends_with_the_next_bad_step():
    assert counted("", 3, 50, 10).too_many is None
    assert counted(".x", 3, 50, 10).too_many is None
    assert counted("x", 3, 50, 10).too_many == range(41, 52)


def test_counts_as_a_slow_definition_does():
    generator = torch.Generator().manual_seed(0)
    outcomes = "".join(".x"[i] for i in (torch.rand(400, generator=generator) < 0.7).int().tolist())
    runs = [(key, len(list(group))) for key, group in itertools.groupby(outcomes)]
    longest = max(length for key, length in runs if key == "x")
    assert counted(outcomes, longest).too_many is None
    assert counted(outcomes, longest - 1).too_many is not None
