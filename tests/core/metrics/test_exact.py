"""Exact AUROC and NRCE, without bins."""

from typing import Any

import numpy as np
import pytest
import torch

from core.metrics.multi_task import MultiTaskMetrics
from tests.core.metrics.test_histogram import at_the_edges, certain, crowded, far_too_high, far_too_low
from tests.support import metrics_truth as truth


def exact(outputs: truth.Outputs, batches: int = 3) -> dict[str, Any]:
    metrics = MultiTaskMetrics(["t"], torch.device("cpu"), exact=True)
    for rows in torch.arange(len(outputs["labels"])).tensor_split(batches):
        metrics.update({name: tensor[rows] for name, tensor in outputs.items()})
    return {name.removeprefix("t/"): value for name, value in metrics.compute().items()}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("data", [crowded, at_the_edges, far_too_low, far_too_high, certain])
def test_metrics_equal_sklearn_on_data_that_defeats_bins(data, seed):
    p, y, w = data(np.random.default_rng(seed))
    w[::7] = 0
    outputs = truth.single_task_outputs(p, y, w)
    actual, expected = exact(outputs), truth.task_metrics(outputs, 0)
    assert actual["auroc"] == pytest.approx(expected["auroc"], rel=1e-12)
    assert actual["nrce"] == pytest.approx(expected["nrce"], rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_predictions_that_differ_in_their_own_dtype_are_not_tied(dtype):
    step = 2 * torch.finfo(dtype).eps
    p = torch.tensor([0.5, 0.5 + step, 0.5 + 2 * step, 0.5 + 2 * step], dtype=dtype)[:, None]
    labels = torch.tensor([0.0, 1.0, 0.0, 1.0])[:, None]
    outputs = {"calibrated_probabilities": p, "labels": labels, "weights": torch.ones(4, 1)}
    assert exact(outputs)["auroc"] == (1 + 1 + 0.5) / 4


def test_the_auroc_depends_only_on_the_order_of_predictions():
    generator = np.random.default_rng(0)
    p, y = generator.random(300), generator.integers(0, 2, 300).astype(float)
    p[:20] = p[20:40]
    before = exact(truth.single_task_outputs(p, y))["auroc"]
    assert exact(truth.single_task_outputs(p**9, y))["auroc"] == before
    assert exact(truth.single_task_outputs(1 - p, y))["auroc"] == pytest.approx(1 - before, rel=1e-12)
