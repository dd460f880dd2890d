"""Ranks meet in a store that earlier launches have used."""

import concurrent.futures
import datetime

import pytest
import torch.distributed as dist

from common.distributed.rendezvous import meet
from common.distributed.roll_call import call_roll
from common.errors import RendezvousError, UserError
from tests.support.ranks import free_port

pytestmark = pytest.mark.usefixtures("agent_store")

TIMEOUT = datetime.timedelta(seconds=20)


@pytest.fixture
def agent_store(monkeypatch: pytest.MonkeyPatch) -> dist.TCPStore:
    """A store like the one that torchrun hosts for all launches of its workers."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    return store


def meet_in_threads(ranks: range, size: int, timeout: datetime.timedelta = TIMEOUT) -> list[dist.Store]:
    """Call meet() for each of `ranks` at the same time."""
    with concurrent.futures.ThreadPoolExecutor(size) as pool:
        return list(pool.map(lambda rank: meet(rank, size, timeout), ranks))


def test_all_ranks_share_a_store_without_values_of_earlier_launches():
    first = meet_in_threads(range(3), 3)
    first[1].set("address", "of a dead rank")
    assert first[2].get("address") == b"of a dead rank"

    second = meet_in_threads(range(3), 3)
    assert not second[0].check(["address"])
    second[1].set("address", "of a live rank")
    assert [store.get("address") for store in second] == [b"of a live rank"] * 3


def test_ranks_of_an_earlier_launch_do_not_count_as_present():
    meet_in_threads(range(3), 3)
    with pytest.raises(UserError, match=r"^rank\(s\) 2 of 3 .* 127\.0\.0\.1:\d+ within .* \(0.3 s\)"):
        meet_in_threads(range(2), 3, datetime.timedelta(seconds=0.3))


def test_without_torchrun_rank_0_hosts_the_store_and_does_not_wait_forever(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "False")
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    with pytest.raises(UserError, match=r"^rank\(s\) 1 of 2 .* 127\.0\.0\.1:\d+ within .* \(0.3 s\)"):
        meet(0, 2, datetime.timedelta(seconds=0.3))


def test_without_rank_0_the_other_ranks_do_not_wait_forever():
    with pytest.raises(UserError, match=r"^rank 0 of 2 .* 127\.0\.0\.1:\d+ within .* \(0.3 s\)"):
        meet_in_threads(range(1, 2), 2, datetime.timedelta(seconds=0.3))


def test_a_long_list_of_missing_ranks_is_shortened():
    with pytest.raises(UserError, match=r"^rank\(s\) 1, 2, 3, .*, 20, \.\.\. of 999999999 "):
        meet(0, 999_999_999, datetime.timedelta(seconds=0.1))


def test_a_rank_of_another_launch_is_refused_and_logged_on_rank_0(caplog):
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        stranger = pool.submit(meet, 1, 2, TIMEOUT, {"training.save_dir": "/theirs"})
        ours = [pool.submit(meet, rank, 2, TIMEOUT, {"training.save_dir": "/ours"}) for rank in range(2)]
        facts = r"rank 1 cannot join at 127\.0\.0\.1:\d+ .*save_dir is /theirs here and /ours there\. .*MASTER_PORT"
        with pytest.raises(RendezvousError, match=facts):
            stranger.result()
        for future in ours:
            future.result()
    assert "refused process" in caplog.text
    assert "as rank 1" in caplog.text


def test_runs_of_torchrun_with_different_ids_do_not_mix(agent_store, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "two")
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        first = pool.submit(call_roll, agent_store, 2, {"WORLD_SIZE": "2", "--rdzv-id": "one"}, 0.5)
        with pytest.raises(RendezvousError, match="--rdzv-id is two here and one there"):
            meet(1, 2, TIMEOUT)
        assert first.result().present == set()
