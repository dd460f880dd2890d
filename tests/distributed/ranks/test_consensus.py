"""A rank that doesn't answer is not waited for beyond the time limit, and one that fails is told to the others."""

import datetime
from pathlib import Path

import pytest
import torch.distributed as dist

from common.distributed.consensus import RankConsensus, RankFlag
from common.distributed.world import World
from core.run.lost_rank import report_lost_rank
from tests.support.ranks import run_ranks


def worker(world: World, checkpoints: Path) -> dict[str, str]:
    found = {}

    def fail_on_1() -> None:
        if world.rank == 1:
            raise ZeroDivisionError("a bug")

    try:
        world.consensus.on_all_ranks(fail_on_1)
    except Exception as error:
        found["another failed"] = f"{type(error).__name__}: {error}"

    consensus = RankConsensus(world.rank, world.size, datetime.timedelta(seconds=2))
    consensus.gather(None)  # creates the group on both ranks
    if world.is_rank_zero:
        consensus.begin(RankFlag.NONE)
        try:
            with report_lost_rank(world, lambda: "step 13 for 2.0 s", checkpoints):
                consensus.result()
        except Exception as error:
            found["no answer"] = f"{type(error).__name__}: {error}"
            found["its cause"] = type(error.__cause__).__name__
    dist.barrier()
    return found


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    checkpoints = tmp_path_factory.mktemp("run") / "checkpoints"
    for step in ("4", "12", ".writing-16"):
        (checkpoints / step).mkdir(parents=True)
        (checkpoints / step / "manifest.json").touch()
    return run_ranks(worker, checkpoints)


def test_a_word_that_a_rank_never_sends_ends_at_the_time_limit_with_the_newest_checkpoint(ranks):
    main, other = ranks
    assert main["no answer"].startswith("LostRankError: rank 0: ")
    for fact in ("step 13 for 2.0 s: Timed out waiting 2000ms", "checkpoints/12. ", "--max-restarts"):
        assert fact in main["no answer"]
    assert main["its cause"] == "RuntimeError"
    assert "no answer" not in other


def test_a_bug_on_one_rank_is_its_own_exception_there_and_told_to_the_others(ranks):
    main, other = (found["another failed"] for found in ranks)
    assert other == "ZeroDivisionError: a bug"
    assert main == "RankFailedError: rank 1 failed; its output has the traceback: ZeroDivisionError: a bug"
