"""What is not a lost rank stays as it is; tests/distributed/ has real ones."""

import dataclasses
from pathlib import Path

import pytest
import torch.distributed as dist

from common.errors import UserError
from core.run.lost_rank import LostRankError, report_lost_rank
from tests.support.toy import ALONE

TWO = dataclasses.replace(ALONE, size=2)


@pytest.mark.parametrize("error", [UserError("a mistake"), RuntimeError("a bug"), KeyboardInterrupt()])
def test_what_is_no_error_of_communication_is_raised_as_it_is(error, tmp_path):
    with pytest.raises(type(error)) as raised, report_lost_rank(TWO, lambda: "step 3", tmp_path):
        raise error
    assert raised.value is error


def test_in_a_world_of_one_nobody_is_lost(tmp_path):
    with pytest.raises(dist.DistNetworkError), report_lost_rank(ALONE, lambda: "step 3", tmp_path):
        raise dist.DistNetworkError("no network")


def test_what_an_error_of_communication_has_led_to_is_a_lost_rank(tmp_path: Path):
    error = ValueError("a save failed")
    error.__cause__ = dist.DistBackendError("[Rank 0] NCCL communicator was aborted. More.\nand a stack in C++")
    told = "Here: step 3: NCCL communicator was aborted. Newest complete checkpoint: none; "
    with pytest.raises(LostRankError, match=told), report_lost_rank(TWO, lambda: "step 3", tmp_path):
        raise error
