"""Ranks meet in a store that others have used before them."""

import concurrent.futures
import datetime

import pytest
import torch.distributed as dist

from common.distributed.rendezvous import meet
from common.errors import UserError

pytestmark = pytest.mark.usefixtures("agent_store")

SECONDS = datetime.timedelta(seconds=20)


@pytest.fixture
def agent_store(monkeypatch: pytest.MonkeyPatch) -> dist.TCPStore:
    """As torchrun hosts it for all starts of its workers."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    return store


def met(ranks: range, size: int, timeout: datetime.timedelta = SECONDS) -> list[dist.Store]:
    with concurrent.futures.ThreadPoolExecutor(size) as pool:
        return list(pool.map(lambda rank: meet(rank, size, timeout), ranks))


def test_all_ranks_get_one_store_that_knows_nothing_of_earlier_starts():
    first = met(range(3), 3)
    first[1].set("address", "of a rank that is dead now")
    assert first[2].get("address") == b"of a rank that is dead now"

    second = met(range(3), 3)
    assert not second[0].check(["address"])
    second[1].set("address", "of a living one")
    assert [store.get("address") for store in second] == [b"of a living one"] * 3


def test_ranks_of_an_earlier_start_are_not_taken_for_there():
    met(range(3), 3)
    with pytest.raises(UserError, match=r"^rank\(s\) 2 of 3 did not come to 127.0.0.1:\d+ within .* \(1 s\)"):
        met(range(2), 3, datetime.timedelta(seconds=1))


def test_without_torchrun_rank_0_does_not_wait_for_ever(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "False")
    monkeypatch.setenv("MASTER_PORT", "0")  # a free one
    with pytest.raises(UserError, match=r"^not all of 2 ranks came to 127.0.0.1:0 within .* 1/2 clients joined\. "):
        met(range(1), 2, datetime.timedelta(seconds=1))


def test_without_rank_0_the_others_do_not_wait_for_ever():
    with pytest.raises(UserError, match=r"^rank 0 of 2 did not come to 127.0.0.1:\d+ within .* \(1 s\)"):
        met(range(1, 2), 2, datetime.timedelta(seconds=1))
