"""A rank that doesn't answer is not waited for beyond the time limit."""

import datetime

import torch.distributed as dist

from common.agreement import Control, ControlWord
from common.device import World
from tests.distributed.harness import run_ranks


def one_rank_does_not_answer(world: World) -> str:
    control = ControlWord(datetime.timedelta(seconds=2))
    told = "no word begun"
    if world.is_main:
        control.begin(Control.NONE)
        try:
            told = f"{control.result()}"
        except RuntimeError as error:
            told = str(error)
    dist.barrier()
    return told


def test_a_word_that_a_rank_never_sends_ends_at_the_time_limit() -> None:
    main, other = run_ranks(one_rank_does_not_answer)
    assert "timed out" in main.lower() or "timeout" in main.lower(), main
    assert other == "no word begun"
