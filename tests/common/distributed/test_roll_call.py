"""Roll calls in a store that dead processes and strangers have used. Threads stand in for ranks."""

import concurrent.futures
import datetime
import threading
from collections.abc import Iterator

import pytest
import torch.distributed as dist

from common.distributed.roll_call import Claim, Roll, answer_roll, call_roll, close_roll
from common.errors import RendezvousError

LIMIT_IN_S = 20.0
OURS = {"training.save_dir": "/ours", "WORLD_SIZE": "3"}
THEIRS = OURS | {"training.save_dir": "/theirs"}


@pytest.fixture
def store() -> dist.Store:
    return dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


@pytest.fixture
def pool() -> Iterator[concurrent.futures.Executor]:
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        yield pool


def claim(rank: int, process: str = "other", launch: dict[str, str] = OURS) -> Claim:
    return Claim(rank, launch, process, process_token=process)


def hold(store: dist.Store, pool: concurrent.futures.Executor, limit_in_s: float = LIMIT_IN_S) -> Roll:
    """Hold a roll call that ranks 1 and 2 answer."""
    joined = [pool.submit(answer_roll, store, claim(rank, f"process {rank}"), limit_in_s) for rank in (1, 2)]
    roll = call_roll(store, 3, OURS, limit_in_s)
    assert all(future.result() is not None for future in joined)
    return roll


def test_all_ranks_share_a_store_of_their_own(store: dist.Store, pool: concurrent.futures.Executor) -> None:
    joined = [pool.submit(answer_roll, store, claim(rank), LIMIT_IN_S) for rank in (2, 1)]
    roll = call_roll(store, 3, OURS, LIMIT_IN_S)
    assert roll.present == {1, 2}
    for future in joined:
        own = future.result()
        assert own is not None
        own.set("key", "value")
    assert roll.store.get("key") == b"value"
    assert not store.check(["key"])


def test_the_dead_do_not_count_as_present(store: dist.Store, pool: concurrent.futures.Executor) -> None:
    first = hold(store, pool)
    second = call_roll(store, 3, OURS, 0.2)
    assert second.present == set()
    third = hold(store, pool)
    third.store.set("key", "value")
    assert not first.store.check(["key"])


class _OvertakenStore(dist.PrefixStore):
    """A store in which a new roll call begins right after this rank has seen that the one before is closed."""

    def __init__(self, store: dist.Store) -> None:
        super().__init__("", store)
        self.set_timeout(datetime.timedelta(seconds=1))
        self.is_overtaken = threading.Event()

    def check(self, keys: list[str]) -> bool:
        found = super().check(keys)
        if keys == ["closed"] and not self.is_overtaken.is_set():
            assert found
            call_roll(self, 3, OURS, 0.0)
            self.is_overtaken.set()
        return found


def test_a_rank_that_sees_the_end_of_the_roll_call_before_joins_the_next_one(
    store: dist.Store, pool: concurrent.futures.Executor
) -> None:
    late_store, store = _OvertakenStore(store), dist.PrefixStore("", store)
    close_roll(store, hold(store, pool), OURS, {"WORLD_SIZE"})
    late = pool.submit(answer_roll, late_store, claim(1), LIMIT_IN_S)
    assert late_store.is_overtaken.wait(LIMIT_IN_S)
    other = pool.submit(answer_roll, store, claim(2), LIMIT_IN_S)
    assert call_roll(store, 3, OURS, LIMIT_IN_S).present == {1, 2}
    assert late.result() is not None
    assert other.result() is not None


def test_a_stranger_that_comes_first_is_refused_and_the_launch_meets(
    store: dist.Store, pool: concurrent.futures.Executor
) -> None:
    stranger = pool.submit(answer_roll, store, claim(1, "stranger", THEIRS), LIMIT_IN_S)
    refused: list[tuple[str, str]] = []
    joined = [pool.submit(answer_roll, store, claim(rank), LIMIT_IN_S) for rank in (1, 2)]
    roll = call_roll(store, 3, OURS, LIMIT_IN_S, lambda claim, refusal: refused.append((claim.process, refusal)))
    with pytest.raises(RendezvousError, match=r"another launch .*training\.save_dir is /theirs here and /ours there"):
        stranger.result()
    assert roll.present == {1, 2}
    assert all(future.result() is not None for future in joined)
    assert refused == [("stranger", "training.save_dir is /theirs here and /ours there")]


@pytest.mark.parametrize(
    ("launch", "fact"),
    [(OURS | {"WORLD_SIZE": "4"}, "WORLD_SIZE is 4 here and 3 there"), ({"WORLD_SIZE": "3"}, "not set here and /ours")],
)
def test_a_launch_with_other_facts_is_another_one(
    store: dist.Store, pool: concurrent.futures.Executor, launch: dict[str, str], fact: str
) -> None:
    refused = pool.submit(answer_roll, store, claim(2, launch=launch), LIMIT_IN_S)
    hold(store, pool)
    with pytest.raises(RendezvousError, match=fact):
        refused.result()


def test_only_one_process_gets_a_rank(store: dist.Store, pool: concurrent.futures.Executor) -> None:
    twins = [pool.submit(answer_roll, store, claim(1, f"twin {twin}"), LIMIT_IN_S) for twin in (1, 2)]
    other = pool.submit(answer_roll, store, claim(2), LIMIT_IN_S)
    roll = call_roll(store, 3, OURS, LIMIT_IN_S)
    close_roll(store, roll, OURS, None)
    assert other.result() is not None
    errors = [twin.exception() for twin in twins]
    assert errors.count(None) == 1
    assert "rank 1 is already taken by twin" in "".join(map(str, errors))


def test_whoever_comes_after_the_roll_is_closed_is_refused_at_once(
    store: dist.Store, pool: concurrent.futures.Executor
) -> None:
    close_roll(store, hold(store, pool), OURS, None)
    with pytest.raises(RendezvousError, match="rank 2 is already taken by process 2"):
        answer_roll(store, claim(2, "late"), LIMIT_IN_S)
    with pytest.raises(RendezvousError, match="is /theirs here"):
        answer_roll(store, claim(1, "late", THEIRS), LIMIT_IN_S)


def test_the_same_processes_can_meet_again(store: dist.Store, pool: concurrent.futures.Executor) -> None:
    close_roll(store, hold(store, pool), OURS, None)
    assert hold(store, pool).present == {1, 2}


def test_ranks_that_a_launcher_restarts_wait_for_the_next_roll_call(
    store: dist.Store, pool: concurrent.futures.Executor
) -> None:
    close_roll(store, hold(store, pool), OURS, {"WORLD_SIZE"})
    fewer = OURS | {"WORLD_SIZE": "2"}
    assert answer_roll(store, claim(1, "early", fewer), 0.1) is None
    with pytest.raises(RendezvousError, match="is /theirs here"):
        answer_roll(store, claim(1, "late", THEIRS), LIMIT_IN_S)
    joined = pool.submit(answer_roll, store, claim(1, "restarted", fewer), LIMIT_IN_S)
    assert call_roll(store, 2, fewer, LIMIT_IN_S).present == {1}
    assert joined.result() is not None


def test_without_rank_0_a_rank_gets_no_answer(store: dist.Store) -> None:
    assert answer_roll(store, claim(1), 0.1) is None


def test_an_absurd_number_of_ranks_takes_no_memory(store: dist.Store) -> None:
    assert call_roll(store, 999_999_999, OURS, 0.1).present == set()
