"""Computes expected metrics with scikit-learn and closed forms in float64, and creates outputs to measure."""

import decimal
import math
from collections.abc import Mapping
from decimal import Decimal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.metrics import (
    average_precision_score,
    log_loss,
    ndcg_score,
    precision_score,
    recall_score,
    roc_auc_score,
)

from common.features.group_encoder import NO_GROUP

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
        "calibrated_logits": logits,
        "labels": labels,
        "weights": weights,
        "reference_probabilities": probabilities,
        "strata": kind == torch.tensor([[0, 1, 2]]),
    }


def random_groups(rows: int = 4000, seed: int = 0) -> Outputs:
    """Return outputs of two tasks with many ties, and groups of sizes from 1 to over 100; 10% of the rows have none."""
    outputs = random_outputs(rows, seed=seed)
    outputs["calibrated_logits"] = (2 * outputs["calibrated_logits"]).round() / 2
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(rows, generator=generator)
    outputs["groups"] = (rows / 4 * uniform**3).long() * 0x1E3779B97F4A7C15  # positive and negative numbers
    outputs["groups"][torch.rand(rows, generator=generator) < 0.1] = NO_GROUP
    return outputs


def single_task_outputs(logits: Array, labels: Array, weights: Array | None = None) -> Outputs:
    """Return float64 outputs of a single task."""
    weights = np.ones_like(labels) if weights is None else weights
    columns = {"calibrated_logits": logits, "labels": labels, "weights": weights}
    return {name: torch.tensor(column, dtype=torch.float64)[:, None] for name, column in columns.items()}


def probabilities_of(logits: Array) -> Array:
    """Return the probabilities of logits."""
    return np.exp(-np.logaddexp(0, -logits))


def logits_of(probabilities: Array) -> Array:
    """Return the logits of probabilities."""
    return np.log(probabilities) - np.log1p(-probabilities)


def column(outputs: Outputs, name: str, task: int) -> Array:
    values: Array = outputs[name][:, task].double().numpy()
    return values


def naive_loss(y: Array, w: Array) -> float:
    """Return the loss of the base rate as a constant prediction."""
    return float(log_loss(y, np.full_like(y, np.average(y, weights=w)), sample_weight=w))


def losses(x: Array, y: Array) -> Array:
    """Return the loss of each logit."""
    return y * np.logaddexp(0, -x) + (1 - y) * np.logaddexp(0, x)


def scaled_losses(x: Array, y: Array, factor: float) -> Array:
    """Return the loss of each logit if its probability is multiplied by `factor`.

    A product above 1 - EPSILON is clipped to it, or to the probability if that is larger.
    """

    negatives = -np.log(np.maximum(1 - factor * probabilities_of(x), EPSILON))
    for row in np.flatnonzero((x > 10) & (y == 0)):  # float64 has too few digits
        with decimal.localcontext(prec=60):
            p = 1 / (1 + Decimal(-x[row]).exp())
            negatives[row] = -max(1 - Decimal(factor) * p, min(Decimal(EPSILON), 1 - p)).ln()
    positives = np.maximum(np.logaddexp(0, -x) - math.log(factor), 0)
    return np.where(y == 1, positives, negatives)


def rce(x: Array, y: Array, w: Array) -> float:
    return float(100 * (1 - np.average(losses(x, y), weights=w) / naive_loss(y, w)))


def nrce(x: Array, y: Array, w: Array) -> float:
    factor = float(np.average(y, weights=w) / np.average(probabilities_of(x), weights=w))
    return float(100 * (1 - np.average(scaled_losses(x, y, factor), weights=w) / naive_loss(y, w)))


def task_metrics(outputs: Outputs, task: int, thresholds: tuple[float, ...] = ()) -> dict[str, float]:
    """Return all metrics of a task that has positives and negatives."""
    x, y, w = (column(outputs, name, task) for name in ("calibrated_logits", "labels", "weights"))
    p = probabilities_of(x)
    metrics = {
        "loss": np.average(losses(x, y), weights=w),
        "rce": rce(x, y, w),
        "nrce": nrce(x, y, w),
        "auroc": roc_auc_score(y, x, sample_weight=w),
        "pr_auc": average_precision_score(y, x, sample_weight=w),
        "calibration": np.average(p, weights=w) / np.average(y, weights=w),
        "ctr": np.average(y, weights=w),
        "mean_prediction": np.average(p, weights=w),
    }
    for threshold in thresholds:
        predicted = p >= threshold
        metrics[f"precision_at_{threshold}"] = precision_score(y, predicted, sample_weight=w)
        metrics[f"recall_at_{threshold}"] = recall_score(y, predicted, sample_weight=w)
    return {name: float(value) for name, value in metrics.items()}


def reciprocal_rank(x: Array, y: Array) -> float:
    """Return the expectation of 1 / rank of the first positive, over all orders of equal logits."""
    best = x[y == 1].max()
    above, tied, positives = int((x > best).sum()), int((x == best).sum()), int(y[x == best].sum())
    return sum(
        math.comb(tied - 1 - place, positives - 1) / math.comb(tied, positives) / (above + place + 1)
        for place in range(tied - positives + 1)
    )


def group_metrics(outputs: Outputs, task: int, ndcg_at: tuple[int, ...] = ()) -> dict[str, float]:
    """Return the metrics within groups of a task, from a loop over the groups."""
    x, y, w = (column(outputs, name, task) for name in ("calibrated_logits", "labels", "weights"))
    groups = outputs["groups"].numpy()
    aucs, auc_weights, reciprocal_ranks = [], [], []
    ndcgs: dict[int, list[float]] = {k: [] for k in ndcg_at}
    for group in set(groups[groups != NO_GROUP].tolist()):
        of_group = (groups == group) & (w > 0)
        xs, ys, ws = x[of_group], y[of_group], w[of_group]
        if 0 < ys.sum() < len(ys):
            aucs.append(roc_auc_score(ys, xs, sample_weight=ws))
            auc_weights.append(ws.sum())
        if ys.sum() > 0:
            reciprocal_ranks.append(reciprocal_rank(xs, ys))
            for k, values in ndcgs.items():  # scikit-learn refuses a single row, which is always ranked perfectly
                values.append(ndcg_score(ys[None], xs[None], k=k) if len(ys) > 1 else 1.0)
    return {
        "gauc": float(np.average(aucs, weights=auc_weights)),
        "gauc_coverage": float(sum(auc_weights) / w.sum()),
        "groups_with_both_classes": len(aucs),
        **{f"ndcg_at_{k}": float(np.mean(values)) for k, values in ndcgs.items()},
        "mrr": float(np.mean(reciprocal_ranks)),
        "groups_with_positives": len(reciprocal_ranks),
    }


def assert_same(actual: Mapping[str, float | None], expected: Mapping[str, float | None], rel: float = 1e-9) -> None:
    """Assert that both have the same names, None for the same names, and equal values within `rel`."""
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert actual[name] == (None if value is None else pytest.approx(value, rel=rel)), name
