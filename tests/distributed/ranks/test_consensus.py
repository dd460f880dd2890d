"""A rank waits for another one only until the time limit, and a failure on one rank is reported to the others."""

import datetime
from pathlib import Path

import pytest
import torch.distributed as dist

from common.distributed.consensus import RankConsensus, RankFlag
from common.distributed.world import World
from core.run.lost_rank import report_lost_rank
from tests.support.ranks import run_ranks

pytestmark = pytest.mark.faults


def worker(world: World, checkpoints: Path) -> dict[str, str]:
    found = {}

    def fail_on_rank_1() -> None:
        if world.rank == 1:
            raise ZeroDivisionError("a bug")

    try:
        world.consensus.on_all_ranks(fail_on_rank_1)
    except Exception as error:
        found["failure on rank 1"] = f"{type(error).__name__}: {error}"

    consensus = RankConsensus(world.rank, world.size, datetime.timedelta(seconds=2))
    consensus.gather(None)  # creates the group on both ranks
    if world.is_rank_zero:
        consensus.begin(RankFlag.NONE)
        try:
            with report_lost_rank(world, lambda: "step 13 for 2.0 s", checkpoints):
                consensus.result()
        except Exception as error:
            found["timeout"] = f"{type(error).__name__}: {error}"
            found["cause of the timeout"] = type(error.__cause__).__name__
    dist.barrier()
    return found


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    checkpoints = tmp_path_factory.mktemp("run") / "checkpoints"
    for step in ("4", "12", ".writing-16"):
        (checkpoints / step).mkdir(parents=True)
        (checkpoints / step / "manifest.json").touch()
    return run_ranks(worker, checkpoints)


def test_waiting_for_flags_that_a_rank_never_sends_times_out_and_names_the_newest_checkpoint(ranks):
    rank_0, rank_1 = ranks
    assert rank_0["timeout"].startswith("LostRankError: rank 0: ")
    for fact in ("step 13 for 2.0 s: Timed out waiting 2000ms", "checkpoints/12. ", "--max-restarts"):
        assert fact in rank_0["timeout"]
    assert rank_0["cause of the timeout"] == "RuntimeError"
    assert "timeout" not in rank_1


def test_a_bug_on_one_rank_raises_its_own_exception_there_and_is_reported_to_the_others(ranks):
    rank_0, rank_1 = (found["failure on rank 1"] for found in ranks)
    assert rank_1 == "ZeroDivisionError: a bug"
    for fact in ("RankFailedError: ", "rank 1", "traceback", "ZeroDivisionError: a bug"):
        assert fact in rank_0
