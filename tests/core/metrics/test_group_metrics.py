"""Metrics within groups of MultiTaskMetrics, against scikit-learn and a loop over the groups."""

import math
from typing import Any

import pytest
import torch

from common.features.group_encoder import NO_GROUP
from core.metrics.multi_task import MultiTaskMetrics
from tests.support import metrics_truth as truth
from tests.support.metrics_truth import Outputs

CPU = torch.device("cpu")
NDCG_AT = [1, 10]


def computed(outputs: Outputs, batch: int = 700, **options: Any) -> dict[str, Any]:
    tasks = [f"t{i}" for i in range(outputs["labels"].shape[1])]
    metrics = MultiTaskMetrics(tasks, CPU, ndcg_at=NDCG_AT, **options)
    for begin in range(0, len(outputs["labels"]), batch):
        metrics.update({name: tensor[begin : begin + batch] for name, tensor in outputs.items()})
    return metrics.compute()


@pytest.mark.parametrize("exact", [False, True])
def test_metrics_equal_sklearn_in_a_loop_over_groups(exact: bool) -> None:
    outputs = truth.random_groups(4000)
    found = computed(outputs, exact=exact)
    expected = [truth.group_metrics(outputs, task, (1, 10)) for task in range(2)]
    for task, metrics in enumerate(expected):
        assert {key: found[f"t{task}/{key}"] for key in metrics} == pytest.approx(metrics, rel=1e-12)
        assert 0.1 < metrics["gauc_coverage"] < 0.9
        assert 0.5 < metrics["gauc"] < 0.9
    for key in ("gauc", "ndcg_at_1", "ndcg_at_10", "mrr"):
        assert found[f"mean/{key}"] == pytest.approx((expected[0][key] + expected[1][key]) / 2, rel=1e-12)
    present = (outputs["groups"] != NO_GROUP) & (outputs["weights"] > 0).any(1)
    assert found["groups"] == len(set(outputs["groups"][present].tolist()))


def test_groups_do_not_change_other_metrics() -> None:
    outputs = truth.random_groups(1000)
    plain = MultiTaskMetrics(["t0", "t1"], CPU)
    plain.update(outputs)
    found = computed(outputs, batch=1000)
    assert {key: found[key] for key in plain.compute()} == plain.compute()


def test_metrics_in_one_group_equal_those_of_all_rows() -> None:
    outputs = truth.random_outputs(2000)
    found = computed(outputs | {"groups": torch.full((2000,), -7)}, exact=True)
    assert found["t0/gauc"] == pytest.approx(found["t0/auroc"], rel=1e-12)
    assert found["t0/gauc_coverage"] == 1.0
    assert found["groups"] == found["t0/groups_with_both_classes"] == 1


def test_rows_without_a_group_count_only_as_not_covered() -> None:
    outputs = truth.random_outputs(100)
    outputs["groups"] = torch.full((100,), NO_GROUP)
    found = computed(outputs)
    assert found["groups"] == found["t0/groups_with_both_classes"] == found["t0/groups_with_positives"] == 0
    assert found["t0/gauc_coverage"] == 0.0
    assert found["t0/gauc"] is found["t0/mrr"] is found["t0/ndcg_at_10"] is found["mean/gauc"] is None


def test_without_rows_all_names_are_present() -> None:
    metrics = MultiTaskMetrics(["t0", "t1"], CPU, ndcg_at=NDCG_AT)
    found = metrics.compute()
    assert found.keys() == computed(truth.random_groups(100)).keys()
    assert {value for key, value in found.items() if "groups" not in key and key != "examples"} == {None}
    assert metrics.headline[-1] == "mean/gauc"
    assert set(metrics.headline) < found.keys()


def test_only_evaluation_tasks_are_measured_and_strata_are_not() -> None:
    outputs = truth.random_groups(1000)
    found = computed(outputs, evaluation_tasks=["t1"], strata=["even", "odd", "none"])
    expected = truth.group_metrics(outputs, 1, (1, 10))
    assert {key: found[f"t1/{key}"] for key in expected} == pytest.approx(expected, rel=1e-12)
    assert found["mean/gauc"] == found["t1/gauc"]
    assert [key for key in found if key.startswith("stratum/") and ("gauc" in key or "mrr" in key)] == []


def test_a_nan_prediction_makes_the_metrics_of_its_task_nan() -> None:
    outputs = truth.random_groups(100)
    outputs["calibrated_logits"][5, 1] = math.nan
    outputs["weights"][5, 1] = 1.0
    found = computed(outputs)
    of_groups = [key for key in found if "gauc" in key or "mrr" in key or "ndcg" in key or "groups" in key]
    assert {key for key in of_groups if math.isnan(found[key])} == {
        *(f"{prefix}/{key}" for prefix in ("t1", "mean") for key in ("gauc", "ndcg_at_1", "ndcg_at_10", "mrr"))
    }


def test_absent_rows_do_not_matter() -> None:
    outputs = truth.random_groups(1000)
    absent = {name: tensor.clone() for name, tensor in outputs.items()}
    absent["weights"].zero_()
    absent["calibrated_logits"].fill_(math.nan)
    joined = {name: torch.cat([tensor, absent[name]]) for name, tensor in outputs.items()}
    truth.assert_same(computed(joined), computed(outputs), rel=1e-12)
