import pytest

from common.distributed.consensus import RankConsensus, RankFlag
from common.errors import UserError


def test_alone_the_word_is_ones_own():
    consensus = RankConsensus()
    for flags in (RankFlag.NONE, RankFlag.STOP, RankFlag.BAD_DATA | RankFlag.TIME_UP):
        consensus.begin(flags)
        assert consensus.result() == flags


def test_words_nest():
    consensus = RankConsensus()
    consensus.begin(RankFlag.BAD_DATA)
    consensus.begin(RankFlag.TIME_UP)
    assert consensus.result() == RankFlag.TIME_UP
    assert consensus.result() == RankFlag.BAD_DATA


def test_alone_errors_are_raised_and_values_returned_at_once():
    consensus = RankConsensus()
    consensus.raise_on_all_ranks(None)
    consensus.on_all_ranks(lambda: None)
    assert consensus.broadcast_from_rank_zero(lambda: None) is None
    assert consensus.broadcast_from_rank_zero(lambda: [1, 2]) == [1, 2]

    def mistake() -> None:
        raise UserError("mine")

    for act in (consensus.on_all_ranks, consensus.broadcast_from_rank_zero):
        with pytest.raises(UserError, match="mine"):
            act(mistake)
    with pytest.raises(UserError, match="mine"):
        consensus.raise_on_all_ranks(UserError("mine"))


def test_what_is_no_mistake_of_the_user_is_not_held_back():
    with pytest.raises(ZeroDivisionError):
        RankConsensus().on_all_ranks(lambda: 1 // 0)  # type: ignore[arg-type]
