import concurrent.futures
import datetime

import pytest
import torch
import torch.distributed as dist

from common.distributed.world import World, check_same_device, joined_world
from common.errors import UserError


def test_a_world_of_one_creates_no_process_group(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    with joined_world(5.0, "cpu") as world:
        assert world == World(0, 0, 1, torch.device("cpu"), datetime.timedelta(seconds=5))
        assert world.is_rank_zero
        assert not torch.distributed.is_initialized()


def test_a_network_interface_that_does_not_exist_is_refused(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo,nosuch0")
    with (
        pytest.raises(UserError, match=r"GLOO_SOCKET_IFNAME='lo,nosuch0'.* no network interface 'nosuch0'"),
        joined_world(5.0, "cpu", group_of_one=True),
    ):
        pass
    assert not torch.distributed.is_initialized()


def test_the_environment_is_checked_first(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "x")
    with pytest.raises(UserError, match="LOCAL_RANK='x'"), joined_world(5.0, "cpu"):
        pass


def test_only_rank_0_is_rank_zero():
    assert [World(rank, 0, 3, torch.device("cpu")).is_rank_zero for rank in range(3)] == [True, False, False]


@pytest.mark.parametrize(
    ("devices", "difference"),
    [(["cpu"] * 3, ""), (["cuda", "cpu", "cuda"], "cuda on rank(s) 0, 2; cpu on rank(s) 1"), (["cpu"], "")],
)
def test_ranks_with_different_devices_are_refused_before_they_connect(devices, difference):
    store = dist.HashStore()

    def check(rank: int) -> str:
        try:
            check_same_device(store, rank, len(devices), devices[rank])
        except UserError as error:
            return str(error)
        return ""

    with concurrent.futures.ThreadPoolExecutor(len(devices)) as pool:
        messages = list(pool.map(check, range(len(devices))))
    assert messages == messages[:1] * len(devices)
    assert messages[0].startswith(f"the processes use different devices: {difference}. " if difference else "")
    assert bool(messages[0]) == bool(difference)
