"""The consensus in a world of one. tests/distributed/ranks/test_consensus.py covers several ranks."""

import datetime

import pytest
import torch.distributed as dist

from common.distributed.consensus import RankConsensus, RankFlag
from common.errors import UserError


def test_in_a_world_of_one_the_result_is_the_flags_of_the_rank() -> None:
    consensus = RankConsensus()
    for flags in (RankFlag.NONE, RankFlag.STOP, RankFlag.BAD_DATA | RankFlag.TIME_UP):
        consensus.begin(flags, pace=3)
        assert consensus.result_and_pace() == (flags, 3)


def test_exchanges_nest() -> None:
    consensus = RankConsensus()
    consensus.begin(RankFlag.BAD_DATA)
    consensus.begin(RankFlag.TIME_UP)
    assert consensus.result() == RankFlag.TIME_UP
    assert consensus.result() == RankFlag.BAD_DATA


def test_in_a_world_of_one_errors_are_raised_and_values_returned_at_once() -> None:
    consensus = RankConsensus()
    consensus.raise_on_all_ranks(None)
    consensus.on_all_ranks(lambda: None)
    assert consensus.broadcast_from_rank_zero(lambda: None) is None
    assert consensus.broadcast_from_rank_zero(lambda: [1, 2]) == [1, 2]
    assert consensus.gather("mine") == ["mine"]

    def refuse() -> None:
        raise UserError("mine")

    for act in (consensus.on_all_ranks, consensus.on_rank_zero, consensus.broadcast_from_rank_zero):
        with pytest.raises(UserError, match="mine"):
            act(refuse)
    with pytest.raises(UserError, match="mine"):
        consensus.raise_on_all_ranks(UserError("mine"))


def test_an_error_of_the_file_system_becomes_a_user_error() -> None:
    def read() -> None:
        raise PermissionError(13, "Permission denied", "/data/part-3")

    with pytest.raises(UserError, match=r"/data/part-3.*Permission denied"):
        RankConsensus().on_all_ranks(read)


def test_other_exceptions_are_raised_unchanged() -> None:
    with pytest.raises(ZeroDivisionError):
        RankConsensus().on_all_ranks(lambda: 1 // 0)


def test_the_process_group_is_created_by_the_first_use() -> None:
    consensus = RankConsensus(1, 2, datetime.timedelta(seconds=5))
    assert not dist.is_initialized()
    with pytest.raises(ValueError, match="process group"):  # torch's error: this process has not joined another
        consensus.gather("mine")
