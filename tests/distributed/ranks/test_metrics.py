"""Two ranks compute the metrics that one process computes from all rows, with one reduction.

Exact metrics also take one gather.
"""

from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist

from common.distributed.world import World
from core.metrics.multi_task import MultiTaskMetrics
from core.metrics.ranking import RankingMetrics
from tests.support import metrics_truth as truth
from tests.support.ranks import run_ranks

TASKS = ["a", "b", "c"]
SHARES = {"equal": [1500, 1500], "uneven": [2900, 100], "only rank 0": [3000, 0], "none": [0, 0]}
COLLECTIVES = ("all_reduce", "all_gather", "reduce", "broadcast", "all_gather_into_tensor", "all_gather_object")


def rows() -> truth.Outputs:
    """Return random outputs.

    Task c has no positives. Stratum none has no rows. The rows of stratum last are all on rank 1 if shares are uneven.
    """
    outputs = truth.random_outputs(3000, tasks=3)
    outputs["labels"][:, 2] = 0
    outputs["strata"][:, 1] = torch.arange(3000) >= 2900
    return outputs


def multi_task_metrics(outputs: truth.Outputs, exact: bool) -> dict[str, Any]:
    options: dict[str, Any] = {"strata": ["even", "last", "none"], "thresholds": [0.3], "has_reference": True}
    metrics = MultiTaskMetrics(TASKS, torch.device("cpu"), exact=exact, **options)
    for begin in range(0, len(outputs["labels"]), 700):
        metrics.update({name: tensor[begin : begin + 700] for name, tensor in outputs.items()})
    return metrics.compute()


def ranking_metrics(rows: slice) -> dict[str, Any]:
    """Return the ranking metrics of some of 100 edges. The last 10 are of relation b."""
    generator = torch.Generator().manual_seed(0)
    ranks = torch.randint(1, 30, (100, 2), generator=generator)
    metrics = RankingMetrics(["a", "b"], torch.device("cpu"), hits_at=[1, 10], filtered=True, per_relation=True)
    outputs = {
        "raw_ranks": ranks * 1.5,
        "filtered_ranks": ranks,
        "negatives_beaten": torch.rand(100, 2, generator=generator),
        "relations": torch.arange(100) // 90,
        "weights": torch.rand(100, generator=generator).round(),
    }
    metrics.update({name: tensor[rows] for name, tensor in outputs.items()})
    return metrics.compute()


def worker(world: World) -> dict[tuple[str, bool], Any]:
    calls: list[str] = []
    with mock.patch.multiple(dist, **{each: _counted(each, calls) for each in COLLECTIVES}):
        ranking = ranking_metrics(slice(70) if world.rank == 0 else slice(70, None))
    found: dict[tuple[str, bool], Any] = {("ranking", True): (ranking, calls)}
    for name, share in SHARES.items():
        begin = sum(share[: world.rank])
        own = {key: tensor[begin : begin + share[world.rank]] for key, tensor in rows().items()}
        for exact in (False, True):
            calls = []
            with mock.patch.multiple(dist, **{each: _counted(each, calls) for each in COLLECTIVES}):
                found[name, exact] = multi_task_metrics(own, exact), calls
    return found


def _counted(name: str, calls: list[str]) -> Any:
    """Return a collective that appends its name to `calls`."""
    real = getattr(dist, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        return real(*args, **kwargs)

    return call


@pytest.fixture(scope="module")
def ranks() -> list[dict[tuple[str, bool], Any]]:
    return run_ranks(worker)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("name", SHARES)
def test_all_ranks_return_the_metrics_of_all_rows(ranks, name, exact):
    (metrics, _), (of_rank_1, _) = (found[name, exact] for found in ranks)
    assert metrics == of_rank_1
    count = sum(SHARES[name])
    alone = multi_task_metrics({key: tensor[:count] for key, tensor in rows().items()}, exact)
    truth.assert_same(metrics, alone)
    assert metrics["examples"] == int((rows()["weights"][:count, 0] > 0).sum())


@pytest.mark.parametrize("exact", [False, True])
def test_metrics_equal_those_of_sklearn(ranks, exact):
    metrics, _ = ranks[1]["uneven", exact]
    strata = rows()["strata"]
    for prefix, chosen in (("", slice(None)), ("stratum/even/", strata[:, 0]), ("stratum/last/", strata[:, 1])):
        for index, task in enumerate(TASKS[:2]):
            outputs = {key: tensor[chosen] for key, tensor in rows().items()}
            expected = truth.task_metrics(outputs, index, (0.3,))
            found = {key: metrics[f"{prefix}{task}/{key}"] for key in expected}
            pr_auc = pytest.approx(expected.pop("pr_auc"), rel=1e-9 if exact else 1e-2)
            assert found.pop("pr_auc") == pr_auc
            assert found == pytest.approx(expected, rel=1e-9 if exact else 1e-4)


@pytest.mark.parametrize("exact", [False, True])
def test_metrics_without_positives_or_rows_are_none(ranks, exact):
    metrics, _ = ranks[0]["uneven", exact]
    assert all(metrics[f"c/{key}"] is None for key in ("rce", "nrce", "auroc", "calibration", "recall_at_0.3"))
    assert metrics["stratum/none/examples"] == 0
    assert {value for key, value in metrics.items() if key.startswith("stratum/none/")} == {0, None}


@pytest.mark.parametrize("name", SHARES)
def test_metrics_take_one_reduction_and_exact_ones_also_one_gather(ranks, name):
    for found in ranks:
        assert found[name, False][1] == ["all_reduce"]
        assert found[name, True][1] == ["all_reduce", "all_gather"]


def test_ranking_metrics_cover_all_ranks_with_one_reduction(ranks):
    (metrics, calls), (of_rank_1, _) = (found["ranking", True] for found in ranks)
    assert metrics == of_rank_1 == pytest.approx(ranking_metrics(slice(None)), rel=1e-12)
    assert metrics["relation/b/examples"] > 0
    assert calls == ["all_reduce"]
