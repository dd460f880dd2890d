"""MultiTaskMetrics against scikit-learn, closed forms, and invariants."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from core.metrics.multi_task import MultiTaskMetrics
from tests.support import metrics_truth as truth
from tests.support.metrics_truth import Outputs, column
from tests.support.metrics_truth import random_outputs as example

CPU = torch.device("cpu")
THRESHOLDS = (0.05, 0.3, 0.7)


def computed(outputs: Outputs, *, batch: int = 700, **options: Any) -> dict[str, Any]:
    tasks = [f"t{i}" for i in range(outputs["labels"].shape[1])]
    metrics = MultiTaskMetrics(tasks, CPU, **options)
    for begin in range(0, len(outputs["labels"]), batch):
        metrics.update({name: tensor[begin : begin + batch] for name, tensor in outputs.items()})
    return metrics.compute()


def of_task(
    probabilities: list[float], labels: list[float], weights: list[float] | None = None, **options: Any
) -> dict[str, Any]:
    """Return the metrics of one task, "t0", without the name of the task."""
    outputs = {
        "calibrated_logits": torch.logit(torch.tensor(probabilities, dtype=torch.float64)).float()[:, None],
        "labels": torch.tensor(labels)[:, None],
        "weights": torch.tensor(weights or [1.0] * len(labels))[:, None],
    }
    return {name.removeprefix("t0/"): value for name, value in computed(outputs, **options).items()}


def assert_close(found: dict[str, Any], expected: dict[str, float], *, exact: bool) -> None:
    """Assert equality, with a tolerance for the metrics from histograms."""
    for key, value in expected.items():
        tolerance = {"auroc": 5e-5, "nrce": 1e-3, "pr_auc": 1e-3}.get(key, 0) if not exact else 0
        assert found[key] == pytest.approx(value, rel=1e-9, abs=tolerance or 1e-10), key


@pytest.mark.parametrize("exact", [False, True])
def test_metrics_equal_sklearn(exact):
    outputs = example()
    found = computed(outputs, exact=exact, thresholds=THRESHOLDS)
    expected = [truth.task_metrics(outputs, task, THRESHOLDS) for task in range(2)]
    for task, metrics in enumerate(expected):
        assert_close({key: found[f"t{task}/{key}"] for key in metrics}, metrics, exact=exact)
    of_means = ("loss", "rce", "nrce", "auroc", "pr_auc")
    means = {key: float(np.mean([metrics[key] for metrics in expected])) for key in of_means}
    assert_close({key: found[f"mean/{key}"] for key in means}, means, exact=exact)
    assert {key for key in found if key.startswith("mean/")} == {f"mean/{key}" for key in means}
    assert found["examples"] == int((outputs["weights"][:, 0] > 0).sum())


@pytest.mark.parametrize("exact", [False, True])
def test_a_stratum_is_measured_like_a_partition_with_its_rows(exact):
    outputs = example(5000)
    options = {"exact": exact, "thresholds": THRESHOLDS, "has_reference": True}
    found = computed(outputs, strata=["even", "odd", "none"], **options)
    whole = computed(outputs, **options)
    assert {key: value for key, value in found.items() if not key.startswith("stratum/")} == whole
    for index, name in enumerate(["even", "odd"]):
        rows = outputs["strata"][:, index]
        alone = computed({key: tensor[rows] for key, tensor in outputs.items()}, **options)
        of_stratum = {key: found[f"stratum/{name}/{key}"] for key in alone}
        truth.assert_same(of_stratum, alone)
        expected = truth.task_metrics({key: tensor[rows] for key, tensor in outputs.items()}, 0, THRESHOLDS)
        assert_close({key: of_stratum[f"t0/{key}"] for key in expected}, expected, exact=exact)
    empty = {key: value for key, value in found.items() if key.startswith("stratum/none/")}
    assert empty.pop("stratum/none/examples") == 0
    assert empty.keys() == {f"stratum/none/{key}" for key in whole if key != "examples"}
    assert set(empty.values()) == {None}


def test_strata_can_overlap_and_nan_in_one_does_not_affect_the_other():
    outputs = example(300, tasks=1)
    outputs["strata"] = torch.stack([torch.arange(300) < 200, torch.arange(300) >= 100], dim=1)
    outputs["calibrated_logits"][250] = math.nan
    outputs["weights"][250] = 1.0
    found = computed(outputs, strata=["first", "last"])
    assert math.isnan(found["stratum/last/t0/rce"])
    assert math.isnan(found["t0/rce"])
    expected = truth.task_metrics({key: tensor[:200] for key, tensor in outputs.items()}, 0)
    assert_close({key: found[f"stratum/first/t0/{key}"] for key in expected}, expected, exact=False)


@pytest.mark.parametrize("exact", [False, True])
def test_only_evaluation_tasks_are_measured(exact):
    outputs = example(1000, tasks=3)
    options = {"exact": exact, "has_reference": True, "strata": ["even", "odd", "none"]}
    found = computed(outputs, evaluation_tasks=["t2", "t1"], **options)
    kept = {name: tensor[:, 1:] if name != "strata" else tensor for name, tensor in outputs.items()}
    expected = computed(kept, **options)
    renamed = {key.replace("t1/", "t2/").replace("t0/", "t1/"): value for key, value in expected.items()}
    assert found == renamed


def test_a_prediction_at_the_threshold_is_positive():
    """This holds even if float32 cannot represent the logit of the threshold."""
    found = of_task([0.7, 0.7, 0.69, 0.71], [1.0, 0.0, 1.0, 1.0], thresholds=[0.7])
    assert found["precision_at_0.7"] == pytest.approx(2 / 3)
    assert found["recall_at_0.7"] == pytest.approx(2 / 3)


def test_undefined_precision_and_recall_are_none():
    no_predicted_positive = of_task([0.1, 0.2], [1.0, 0.0], thresholds=[0.5])
    assert (no_predicted_positive["precision_at_0.5"], no_predicted_positive["recall_at_0.5"]) == (None, 0.0)
    no_positive = of_task([0.1, 0.8], [0.0, 0.0], thresholds=[0.5])
    assert (no_positive["precision_at_0.5"], no_positive["recall_at_0.5"]) == (0.0, None)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("factor", [0.2, 0.9, 1.0, 1.5])
def test_scaling_the_predictions_does_not_change_nrce(exact, factor):
    outputs = example()
    probabilities = outputs["calibrated_logits"].double().sigmoid()
    probabilities *= 0.6 / probabilities.max()
    outputs["calibrated_logits"] = probabilities.logit()
    before = computed(outputs, exact=exact)
    outputs["calibrated_logits"] = (probabilities * factor).logit()
    found = computed(outputs, exact=exact)
    assert found["t0/calibration"] == pytest.approx(factor * before["t0/calibration"], rel=1e-12)
    assert found["t0/nrce"] == pytest.approx(before["t0/nrce"], abs=1e-9 if exact else 1e-3)


def test_nrce_of_a_calibrated_model_equals_its_rce():
    outputs = example(1000, tasks=1)
    x, y, w = (column(outputs, name, 0) for name in ("calibrated_logits", "labels", "weights"))
    p = truth.probabilities_of(x)
    w[y == 1] *= (w * p)[y == 0].sum() / (w * (1 - p))[y == 1].sum()
    found = computed(truth.single_task_outputs(x, y, w))
    assert found["t0/calibration"] == pytest.approx(1.0, rel=1e-12)
    assert found["t0/nrce"] == pytest.approx(found["t0/rce"], abs=1e-10)


@pytest.mark.parametrize("logit", [-math.inf, -1e4, -744.0])
def test_nrce_is_undefined_if_no_finite_factor_makes_the_means_equal(logit):
    found = of_logits([logit, logit], [1.0, 0.0])
    assert found["nrce"] is None
    assert found["calibration"] == pytest.approx(0.0, abs=1e-300)
    assert found["rce"] < 0


def test_metrics_do_not_depend_on_the_batch_size():
    outputs = example(2000)
    whole, pieces = computed(outputs, batch=2000), computed(outputs, batch=13)
    assert whole == pytest.approx(pieces, rel=1e-12)


def test_auroc_counts_ties_half():
    assert of_task([0.3, 0.3, 0.3], [1.0, 0.0, 0.0])["auroc"] == 0.5
    assert of_task([0.3, 0.1, 0.3], [1.0, 0.0, 0.0])["auroc"] == 0.75


@pytest.mark.parametrize("exact", [False, True])
def test_absent_rows_do_not_count_whatever_the_model_predicts_for_them(exact):
    outputs = example(1000)
    absent = outputs["weights"][:, 0] == 0
    options = {"has_reference": True, "exact": exact, "thresholds": THRESHOLDS, "strata": ["even", "odd", "none"]}
    expected = computed({name: tensor[~absent] for name, tensor in outputs.items()}, **options)
    outputs["calibrated_logits"][absent] = math.nan
    found = computed(outputs, **options)
    truth.assert_same(found, expected, rel=1e-12)
    assert found["examples"] == int((~absent).sum())


def test_weights_count_like_repeated_rows():
    p, y, w = [0.2, 0.9, 0.4, 0.7], [0.0, 1.0, 1.0, 0.0], [1.0, 3.0, 2.0, 4.0]
    weighted = of_task(p, y, w)
    repeated = of_task(*([v for v, n in zip(values, w, strict=True) for _ in range(int(n))] for values in (p, y)))
    assert {**weighted, "examples": 10} == pytest.approx(repeated, rel=1e-12)


@pytest.mark.parametrize(("label", "ctr"), [(0.0, 0.0), (1.0, 1.0)])
def test_rce_and_auroc_are_undefined_without_positives_or_negatives(label, ctr):
    found = of_task([0.25, 0.25], [label, label])
    assert found["rce"] is found["nrce"] is found["auroc"] is None
    assert found["calibration"] == (pytest.approx(0.25, rel=1e-6) if label else None)
    assert found["ctr"] == ctr
    assert found["loss"] == pytest.approx(-math.log(0.25 if label else 0.75), rel=1e-7)


def test_the_means_skip_tasks_without_a_defined_value():
    outputs = example(1000, tasks=4)
    outputs["labels"][:, 1] = 0  # no positive
    outputs["labels"][:, 2] = 1  # no negative
    outputs["weights"][:, 3] = 0  # no row
    found = computed(outputs)
    assert {value for key, value in found.items() if key.startswith("t3/")} == {None}
    for key in ("rce", "nrce", "auroc"):
        assert found[f"mean/{key}"] == found[f"t0/{key}"]
    assert found["mean/loss"] == pytest.approx(np.mean([found[f"t{task}/loss"] for task in range(3)]))
    assert found["examples"] == int((outputs["weights"][:, 0] > 0).sum())


def test_all_metrics_are_undefined_without_examples():
    found = MultiTaskMetrics(["t0"], CPU).compute()
    assert found.pop("examples") == 0
    assert set(found.values()) == {None}


CONFIDENT = [3.0, 17.0, 18.0, 25.0, 30.0, 37.0, 40.0, 60.0, 100.0, 800.0]


def of_logits(logits: list[float], labels: list[float], dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    """Return the metrics of one task, "t0", without the name of the task."""
    outputs = {
        "calibrated_logits": torch.tensor(logits, dtype=dtype)[:, None],
        "labels": torch.tensor(labels)[:, None],
        "weights": torch.ones(len(labels), 1),
    }
    return {name.removeprefix("t0/"): value for name, value in computed(outputs, **options).items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("logit", CONFIDENT)
def test_a_wrong_confident_prediction_costs_its_logit_on_both_sides(logit, dtype):
    too_high, too_low = of_logits([logit], [0.0], dtype), of_logits([-logit], [1.0], dtype)
    assert too_high["loss"] == too_low["loss"] == pytest.approx(logit + math.log1p(math.exp(-logit)), rel=1e-15)


@pytest.mark.parametrize("logit", CONFIDENT)
def test_a_right_confident_prediction_costs_the_other_probability_on_both_sides(logit):
    high, low = of_logits([logit], [1.0]), of_logits([-logit], [0.0])
    assert high["loss"] == low["loss"] == pytest.approx(math.log1p(math.exp(-logit)), rel=1e-12, abs=0)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("sign", [1, -1])
def test_confident_predictions_are_distinct(exact, sign):
    logits = sorted(sign * logit for logit in CONFIDENT)
    for cut in range(1, len(logits)):
        labels = [float(index >= cut) for index in range(len(logits))]
        assert of_logits(logits, labels, exact=exact)["auroc"] == 1.0
        assert of_logits(logits, [1 - label for label in labels], exact=exact)["auroc"] == 0.0


@pytest.mark.parametrize("exact", [False, True])
def test_mirrored_predictions_and_labels_have_the_same_metrics(exact):
    generator = np.random.default_rng(0)
    x = generator.normal(0, 30, 500)
    y = (generator.random(500) < 0.5).astype(float)
    found, mirrored = (
        of_logits(list(sign * x), list(y if sign > 0 else 1 - y), torch.float64, exact=exact) for sign in (1, -1)
    )
    for key in ("loss", "rce", "auroc"):
        assert found[key] == pytest.approx(mirrored[key], rel=1e-12), key
    assert found["mean_prediction"] == pytest.approx(1 - mirrored["mean_prediction"], rel=1e-12)


@pytest.mark.parametrize("exact", [False, True])
def test_nrce_does_not_clip_a_prediction_that_is_hardly_scaled_up(exact):
    """A wrong prediction of logit 60 costs 60 nats, not the 27.6 nats of a probability of 1 - 1e-12."""
    x, y, w = np.array([60.0, -1.0, 0.0, 1.0, 2.0]), np.array([0.0, 0.0, 1.0, 1.0, 1.0]), np.ones(5)
    p, factor = truth.probabilities_of(x), 1 + 1e-9
    w[2:] = factor * p[:2].sum() / (3 - factor * p[2:].sum())
    outputs = truth.single_task_outputs(x, y, w)
    found, expected = computed(outputs, exact=exact), truth.task_metrics(outputs, 0)
    assert expected["nrce"] == pytest.approx(expected["rce"], rel=1e-6)
    assert found["t0/nrce"] == pytest.approx(expected["nrce"], rel=1e-6)


@pytest.mark.parametrize("exact", [False, True])
def test_infinite_logits_have_finite_metrics(exact):
    infinite = [-math.inf, math.inf, -math.inf, math.inf]
    right = of_logits(infinite, [0.0, 1.0, 0.0, 1.0], exact=exact)
    assert (right["auroc"], right["loss"], right["mean_prediction"]) == (1.0, 0.0, 0.5)
    wrong = of_logits(infinite, [1.0, 0.0, 1.0, 0.0], exact=exact)
    assert wrong["auroc"] == 0.0
    assert 1e38 < wrong["loss"] < math.inf
    assert math.isfinite(wrong["rce"])


@pytest.mark.parametrize("exact", [False, True])
def test_a_nan_prediction_makes_the_metrics_of_its_task_nan(exact):
    outputs = example(100)
    outputs["calibrated_logits"][5, 1] = math.nan
    outputs["weights"][5, 1] = 1.0
    found = computed(outputs, exact=exact, thresholds=[0.5], has_reference=True)
    of_labels = {"t1/ctr", "t1/reachable_rce"}
    assert {key for key, value in found.items() if value is not None and math.isnan(value)} == {
        key for key in found if key.startswith(("t1/", "mean/")) and key not in of_labels
    }


def test_the_reference_probabilities_reach_the_whole_reachable_rce():
    outputs = example()
    outputs["calibrated_logits"] = outputs["reference_probabilities"].double().logit()
    found = computed(outputs, has_reference=True)
    for task in range(2):
        p, w = column(outputs, "reference_probabilities", task), column(outputs, "weights", task)
        entropy = np.average(-(p * np.log(p) + (1 - p) * np.log(1 - p)), weights=w)
        rate = np.average(p, weights=w)
        naive = -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate))
        assert found[f"t{task}/reachable_rce"] == pytest.approx(100 * (1 - entropy / naive), rel=1e-9)
        assert found[f"t{task}/share_of_reachable_rce"] == pytest.approx(1.0, rel=1e-12)


def test_the_base_rate_as_a_constant_prediction_reaches_a_share_of_0():
    outputs = example()
    w, p = outputs["weights"].double(), outputs["reference_probabilities"].double()
    outputs["calibrated_logits"] = ((w * p).sum(0) / w.sum(0)).logit().expand_as(p)
    found = computed(outputs, has_reference=True)
    assert found["t0/share_of_reachable_rce"] == pytest.approx(0.0, abs=1e-9)
    assert found["t1/share_of_reachable_rce"] == pytest.approx(0.0, abs=1e-9)


def test_the_share_is_undefined_if_no_rce_is_reachable():
    outputs = example(1000)
    outputs["reference_probabilities"] = torch.full_like(outputs["labels"], 0.3)
    found = computed(outputs, has_reference=True)
    assert found["t0/reachable_rce"] == pytest.approx(0.0, abs=1e-9)
    assert found["t0/share_of_reachable_rce"] is None


@pytest.mark.parametrize("exact", [False, True])
def test_states_of_parts_add_up(exact):
    outputs = truth.random_groups()
    options: dict[str, Any] = {
        "exact": exact,
        "strata": ["a", "b", "c"],
        "thresholds": THRESHOLDS,
        "has_reference": True,
    }
    whole = computed(outputs, ndcg_at=[3], **options)
    total = MultiTaskMetrics(["t0", "t1"], CPU, ndcg_at=[3], **options)
    for begin in range(0, len(outputs["labels"]), 1500):
        part = MultiTaskMetrics(["t0", "t1"], CPU, ndcg_at=[3], **options)
        part.update({name: tensor[begin : begin + 1500] for name, tensor in outputs.items()})
        total.add(part.state())
    found = total.compute()
    assert found.keys() == whole.keys()
    assert found == {name: value if value is None else pytest.approx(value, rel=1e-12) for name, value in whole.items()}
