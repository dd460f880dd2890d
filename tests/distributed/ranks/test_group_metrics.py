"""Two and three ranks compute the metrics within groups that one process computes from all rows."""

from typing import Any

import pytest
import torch

from common.distributed.world import World
from common.features.group_encoder import NO_GROUP
from core.metrics.multi_task import MultiTaskMetrics
from tests.support import metrics_truth as truth
from tests.support.ranks import run_ranks

SHARES = ("interleaved", "uneven", "only rank 0")
CASES = [("groups", share) for share in SHARES] + [("one group", "interleaved"), ("no group", "interleaved")]


def rank_of_rows(share: str, world_size: int) -> torch.Tensor:
    row = torch.arange(3000)
    if share == "interleaved":  # all ranks have rows of each group
        return row % world_size
    return (row >= 2900).long() if share == "uneven" else torch.zeros_like(row)


def rows(name: str) -> truth.Outputs:
    outputs = truth.random_groups(3000)
    if name == "one group":
        outputs["groups"][:] = -7
    if name == "no group":
        outputs["groups"][:] = NO_GROUP
    return outputs


def group_metrics(outputs: truth.Outputs) -> dict[str, Any]:
    metrics = MultiTaskMetrics(["a", "b"], torch.device("cpu"), ndcg_at=[1, 10])
    for begin in range(0, len(outputs["labels"]), 700):
        metrics.update({name: tensor[begin : begin + 700] for name, tensor in outputs.items()})
    return metrics.compute()


def worker(world: World) -> list[dict[str, Any]]:
    found = []
    for name, share in CASES:
        own = rank_of_rows(share, world.size) == world.rank
        found.append(group_metrics({key: tensor[own] for key, tensor in rows(name).items()}))
    return found


@pytest.mark.parametrize("world_size", [2, 3])
def test_all_ranks_return_the_metrics_of_one_process(world_size: int) -> None:
    of_ranks = run_ranks(worker, world_size=world_size)
    for index, (name, _) in enumerate(CASES):
        found = of_ranks[0][index]
        assert all(of_rank[index] == found for of_rank in of_ranks)
        truth.assert_same(found, group_metrics(rows(name)), rel=1e-12)
