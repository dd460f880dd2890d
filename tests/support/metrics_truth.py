"""Computes expected metrics with scikit-learn and closed forms in float64, and creates outputs to measure."""

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.metrics import log_loss, precision_score, recall_score, roc_auc_score

Array = NDArray[np.float64]
Outputs = dict[str, torch.Tensor]

EPSILON = 1e-12


def random_outputs(rows: int = 20_000, tasks: int = 2, seed: int = 0) -> Outputs:
    """Return imperfect predictions, rare positives, uneven weights, 10% masked rows, and three strata (one empty)."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, tasks, generator=generator) - 2
    probabilities = torch.sigmoid(logits + 0.5 * torch.randn(rows, tasks, generator=generator))
    weights = 3 * torch.rand(rows, tasks, generator=generator)
    weights[torch.rand(rows, generator=generator) < 0.1] = 0
    labels = (torch.rand(rows, tasks, generator=generator) < probabilities).float()
    kind = torch.randint(0, 2, (rows, 1), generator=generator)
    return {
        "calibrated_probabilities": torch.sigmoid(logits),
        "labels": labels,
        "weights": weights,
        "reference_probabilities": probabilities,
        "strata": kind == torch.tensor([[0, 1, 2]]),
    }


def single_task_outputs(probabilities: Array, labels: Array, weights: Array | None = None) -> Outputs:
    """Return float64 outputs of a single task."""
    weights = np.ones_like(labels) if weights is None else weights
    columns = {"calibrated_probabilities": probabilities, "labels": labels, "weights": weights}
    return {name: torch.tensor(column, dtype=torch.float64)[:, None] for name, column in columns.items()}


def column(outputs: Outputs, name: str, task: int) -> Array:
    values: Array = outputs[name][:, task].double().numpy()
    return values


def naive_loss(y: Array, w: Array) -> float:
    """Return the loss of the base rate as a constant prediction."""
    return float(log_loss(y, np.full_like(y, np.average(y, weights=w)), sample_weight=w))


def rce(p: Array, y: Array, w: Array) -> float:
    return float(100 * (1 - log_loss(y, p, sample_weight=w) / naive_loss(y, w)))


def nrce(p: Array, y: Array, w: Array) -> float:
    scaled = p * np.average(y, weights=w) / np.average(p, weights=w)
    return rce(np.clip(scaled, EPSILON, 1 - EPSILON), y, w)


def task_metrics(outputs: Outputs, task: int, thresholds: tuple[float, ...] = ()) -> dict[str, float]:
    """Return all metrics of a task that has positives and negatives."""
    p, y, w = (column(outputs, name, task) for name in ("calibrated_probabilities", "labels", "weights"))
    metrics = {
        "loss": log_loss(y, p, sample_weight=w),
        "rce": rce(p, y, w),
        "nrce": nrce(p, y, w),
        "auroc": roc_auc_score(y, p, sample_weight=w),
        "calibration": np.average(p, weights=w) / np.average(y, weights=w),
        "ctr": np.average(y, weights=w),
        "mean_prediction": np.average(p, weights=w),
    }
    for threshold in thresholds:
        predicted = p >= np.float64(np.float32(threshold))
        metrics[f"precision_at_{threshold}"] = precision_score(y, predicted, sample_weight=w)
        metrics[f"recall_at_{threshold}"] = recall_score(y, predicted, sample_weight=w)
    return {name: float(value) for name, value in metrics.items()}


def assert_same(actual: Mapping[str, float | None], expected: Mapping[str, float | None], rel: float = 1e-9) -> None:
    """Assert that both have the same names, None for the same names, and equal values within `rel`."""
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert actual[name] == (None if value is None else pytest.approx(value, rel=rel)), name
