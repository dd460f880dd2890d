"""Metrics of one task by scikit-learn and closed forms in float64, and outputs to compute them of."""

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.metrics import log_loss, precision_score, recall_score, roc_auc_score

Array = NDArray[np.float64]
Outputs = dict[str, torch.Tensor]

EPSILON = 1e-12


def outputs_of(rows: int = 20_000, tasks: int = 2, seed: int = 0) -> Outputs:
    """Predictions as a model makes them, rare positives, weights far from uniform, a tenth of the rows masked; three
    strata, the last one empty."""
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


def of_one_task(probabilities: Array, labels: Array, weights: Array | None = None) -> Outputs:
    """float64 outputs of a single task."""
    weights = np.ones_like(labels) if weights is None else weights
    columns = {"calibrated_probabilities": probabilities, "labels": labels, "weights": weights}
    return {name: torch.tensor(column, dtype=torch.float64)[:, None] for name, column in columns.items()}


def column(outputs: Outputs, name: str, task: int) -> Array:
    values: Array = outputs[name][:, task].double().numpy()
    return values


def naive_loss(y: Array, w: Array) -> float:
    """Of the base rate as a constant prediction."""
    return float(log_loss(y, np.full_like(y, np.average(y, weights=w)), sample_weight=w))


def rce(p: Array, y: Array, w: Array) -> float:
    return float(100 * (1 - log_loss(y, p, sample_weight=w) / naive_loss(y, w)))


def nrce(p: Array, y: Array, w: Array) -> float:
    normalised = p * np.average(y, weights=w) / np.average(p, weights=w)
    return rce(np.clip(normalised, EPSILON, 1 - EPSILON), y, w)


def of_task(outputs: Outputs, task: int, thresholds: tuple[float, ...] = ()) -> dict[str, float]:
    """All metrics of a task that has positives and negatives."""
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


def assert_same(found: Mapping[str, float | None], expected: Mapping[str, float | None], rel: float = 1e-9) -> None:
    """The same names, None for the same ones, else within `rel`."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == (None if value is None else pytest.approx(value, rel=rel)), name
