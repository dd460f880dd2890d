import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.metrics import log_loss, roc_auc_score

from core.metrics.multi_task import MultiTaskMetrics

CPU = torch.device("cpu")
Outputs = dict[str, torch.Tensor]


def example(rows: int = 20_000, tasks: int = 2, seed: int = 0) -> Outputs:
    """Predictions as a model makes them, rare positives, weights far from uniform, a tenth of the rows masked."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, tasks, generator=generator) - 2
    probabilities = torch.sigmoid(logits + 0.5 * torch.randn(rows, tasks, generator=generator))
    weights = 3 * torch.rand(rows, tasks, generator=generator)
    weights[torch.rand(rows, generator=generator) < 0.1] = 0
    return {
        "calibrated_probabilities": torch.sigmoid(logits),
        "labels": (torch.rand(rows, tasks, generator=generator) < probabilities).float(),
        "weights": weights,
        "reference_probabilities": probabilities,
    }


def computed(outputs: Outputs, *, batch: int = 700, has_reference: bool = False) -> dict[str, Any]:
    tasks = [f"t{i}" for i in range(outputs["labels"].shape[1])]
    metrics = MultiTaskMetrics(tasks, CPU, has_reference=has_reference)
    for begin in range(0, len(outputs["labels"]), batch):
        metrics.update({name: tensor[begin : begin + batch] for name, tensor in outputs.items()})
    return metrics.compute()


def column(outputs: Outputs, name: str, task: int) -> NDArray[np.float64]:
    return outputs[name][:, task].double().numpy()


def of_task(probabilities: list[float], labels: list[float], weights: list[float] | None = None) -> dict[str, Any]:
    """The metrics of one task, "t0", without its name."""
    outputs = {
        "calibrated_probabilities": torch.tensor(probabilities)[:, None],
        "labels": torch.tensor(labels)[:, None],
        "weights": torch.tensor(weights or [1.0] * len(labels))[:, None],
    }
    return {name.removeprefix("t0/"): value for name, value in computed(outputs).items()}


def test_equals_sklearn():
    outputs = example()
    found = computed(outputs)
    expected: dict[str, list[float]] = {"loss": [], "rce": [], "auroc": []}
    for task in range(2):
        p, y, w = (column(outputs, name, task) for name in ("calibrated_probabilities", "labels", "weights"))
        loss = log_loss(y, p, sample_weight=w)
        rate = np.average(y, weights=w)
        naive = log_loss(y, np.full_like(y, rate), sample_weight=w)
        expected["loss"].append(loss)
        expected["rce"].append(100 * (1 - loss / naive))
        expected["auroc"].append(roc_auc_score(y, p, sample_weight=w))
        for key in ("loss", "rce"):
            assert found[f"t{task}/{key}"] == pytest.approx(expected[key][-1], rel=1e-9)
        assert abs(found[f"t{task}/auroc"] - expected["auroc"][-1]) < 1e-5
        assert found[f"t{task}/ctr"] == pytest.approx(rate, rel=1e-12)
        assert found[f"t{task}/mean_prediction"] == pytest.approx(np.average(p, weights=w), rel=1e-12)
    for key, values in expected.items():
        assert found[f"mean/{key}"] == pytest.approx(np.mean(values), rel=1e-5)
    assert found["examples"] == int((outputs["weights"][:, 0] > 0).sum())


def test_does_not_depend_on_how_rows_are_cut_into_batches():
    outputs = example(2000)
    whole, pieces = computed(outputs, batch=2000), computed(outputs, batch=13)
    assert whole == pytest.approx(pieces, rel=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_auroc_is_within_its_bound_where_predictions_crowd(seed):
    """Predictions within two bins' width of each other, many of them equal."""
    generator = np.random.default_rng(seed)
    width = 40 / 2**15
    logits = 1.0 + generator.integers(0, 8, 400) * width / 4
    labels, weights = generator.integers(0, 2, 400).astype(float), generator.random(400)
    outputs = {
        "calibrated_probabilities": torch.sigmoid(torch.tensor(logits))[:, None],
        "labels": torch.tensor(labels)[:, None],
        "weights": torch.tensor(weights)[:, None],
    }
    truth = roc_auc_score(labels, logits, sample_weight=weights)
    positive, negative = labels == 1, labels == 0
    pairs = weights[positive, None] * weights[None, negative]
    # Pairs that may share a bin: closer than its width.
    close = np.abs(logits[positive, None] - logits[None, negative]) < width
    bound = (pairs * close).sum() / pairs.sum() / 2
    assert abs(computed(outputs)["t0/auroc"] - truth) <= bound


def test_auroc_counts_ties_half():
    assert of_task([0.3, 0.3, 0.3], [1.0, 0.0, 0.0])["auroc"] == 0.5
    assert of_task([0.3, 0.1, 0.3], [1.0, 0.0, 0.0])["auroc"] == 0.75


def test_absent_rows_count_for_nothing_whatever_the_model_makes_of_them():
    outputs = example(1000)
    absent = outputs["weights"][:, 0] == 0
    expected = computed({name: tensor[~absent] for name, tensor in outputs.items()}, has_reference=True)
    outputs["calibrated_probabilities"][absent] = math.nan
    found = computed(outputs, has_reference=True)
    assert found == pytest.approx(expected, rel=1e-12)
    assert found["examples"] == int((~absent).sum())


def test_weights_count_like_repeated_rows():
    p, y, w = [0.2, 0.9, 0.4, 0.7], [0.0, 1.0, 1.0, 0.0], [1.0, 3.0, 2.0, 4.0]
    weighted = of_task(p, y, w)
    repeated = of_task(*([v for v, n in zip(values, w, strict=True) for _ in range(int(n))] for values in (p, y)))
    assert {**weighted, "examples": 10} == pytest.approx(repeated, rel=1e-12)


@pytest.mark.parametrize(("label", "ctr"), [(0.0, 0.0), (1.0, 1.0)])
def test_without_positives_or_negatives_there_is_neither_rce_nor_auroc(label, ctr):
    found = of_task([0.25, 0.25], [label, label])
    assert found["rce"] is None
    assert found["auroc"] is None
    assert found["ctr"] == ctr
    assert found["loss"] == pytest.approx(-math.log(0.25 if label else 0.75), rel=1e-7)


def test_what_a_task_lacks_is_left_out_of_the_means():
    outputs = example(1000, tasks=4)
    outputs["labels"][:, 1] = 0  # no positive
    outputs["labels"][:, 2] = 1  # no negative
    outputs["weights"][:, 3] = 0  # no row
    found = computed(outputs)
    assert {key: found[f"t3/{key}"] for key in ("loss", "rce", "auroc", "ctr", "mean_prediction")} == dict.fromkeys(
        ("loss", "rce", "auroc", "ctr", "mean_prediction")
    )
    assert found["mean/rce"] == found["t0/rce"]
    assert found["mean/auroc"] == found["t0/auroc"]
    assert found["mean/loss"] == pytest.approx(np.mean([found[f"t{task}/loss"] for task in range(3)]))
    assert found["examples"] == int((outputs["weights"][:, 0] > 0).sum())


def test_nothing_evaluated_is_nothing_known():
    found = MultiTaskMetrics(["t0"], CPU).compute()
    assert found.pop("examples") == 0
    assert set(found.values()) == {None}


def test_predictions_of_exactly_0_and_1_are_finite():
    right = of_task([0.0, 1.0, 0.0, 1.0], [0.0, 1.0, 0.0, 1.0])
    assert right["auroc"] == 1.0
    assert right["loss"] == pytest.approx(0.0, abs=1e-11)
    wrong = of_task([1.0, 0.0], [0.0, 1.0])
    assert wrong["auroc"] == 0.0
    assert wrong["loss"] == pytest.approx(-math.log(1e-12), rel=1e-4)
    assert math.isfinite(wrong["rce"])


def test_a_prediction_that_is_nan_is_not_hidden():
    outputs = example(100)
    outputs["calibrated_probabilities"][5, 1] = math.nan
    outputs["weights"][5, 1] = 1.0
    found = computed(outputs)
    assert all(math.isnan(found[name]) for name in ("t1/loss", "t1/rce", "t1/auroc", "mean/loss", "mean/auroc"))
    assert math.isfinite(found["t0/auroc"])


def test_the_reference_itself_reaches_all_of_the_reachable_rce():
    outputs = example()
    outputs["calibrated_probabilities"] = outputs["reference_probabilities"]
    found = computed(outputs, has_reference=True)
    for task in range(2):
        p, w = column(outputs, "reference_probabilities", task), column(outputs, "weights", task)
        entropy = np.average(-(p * np.log(p) + (1 - p) * np.log(1 - p)), weights=w)
        rate = np.average(p, weights=w)
        naive = -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate))
        assert found[f"t{task}/reachable_rce"] == pytest.approx(100 * (1 - entropy / naive), rel=1e-9)
        assert found[f"t{task}/share_of_reachable_rce"] == pytest.approx(1.0, rel=1e-12)


def test_the_base_rate_as_a_constant_reaches_nothing():
    outputs = example()
    w, p = outputs["weights"].double(), outputs["reference_probabilities"].double()
    outputs["calibrated_probabilities"] = ((w * p).sum(0) / w.sum(0)).expand_as(p)
    found = computed(outputs, has_reference=True)
    assert found["t0/share_of_reachable_rce"] == pytest.approx(0.0, abs=1e-9)
    assert found["t1/share_of_reachable_rce"] == pytest.approx(0.0, abs=1e-9)


def test_where_nothing_is_reachable_there_is_no_share():
    outputs = example(1000)
    outputs["reference_probabilities"] = torch.full_like(outputs["labels"], 0.3)
    found = computed(outputs, has_reference=True)
    assert found["t0/reachable_rce"] == pytest.approx(0.0, abs=1e-9)
    assert found["t0/share_of_reachable_rce"] is None
