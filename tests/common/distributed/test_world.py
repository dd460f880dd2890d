import datetime

import torch

from common.distributed.world import World, joined_world


def test_a_world_of_one_creates_no_process_group(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    with joined_world(5.0, "cpu") as world:
        assert world == World(0, 0, 1, torch.device("cpu"), datetime.timedelta(seconds=5))
        assert world.is_rank_zero
        assert not torch.distributed.is_initialized()


def test_only_rank_0_is_rank_zero():
    assert [World(rank, 0, 3, torch.device("cpu")).is_rank_zero for rank in range(3)] == [True, False, False]
