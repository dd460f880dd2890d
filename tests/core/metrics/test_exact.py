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
    x, y, w = data(np.random.default_rng(seed))
    w[::7] = 0
    outputs = truth.single_task_outputs(x, y, w)
    actual, expected = exact(outputs), truth.task_metrics(outputs, 0)
    assert actual["auroc"] == pytest.approx(expected["auroc"], rel=1e-12)
    assert actual["nrce"] == pytest.approx(expected["nrce"], rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_predictions_that_differ_in_their_own_dtype_are_not_tied(dtype):
    step = 2 * torch.finfo(dtype).eps
    logits = torch.tensor([1.0, 1.0 + step, 1.0 + 2 * step, 1.0 + 2 * step], dtype=dtype)[:, None]
    labels = torch.tensor([0.0, 1.0, 0.0, 1.0])[:, None]
    outputs = {"calibrated_logits": logits, "labels": labels, "weights": torch.ones(4, 1)}
    assert exact(outputs)["auroc"] == (1 + 1 + 0.5) / 4


def test_the_auroc_depends_only_on_the_order_of_predictions():
    generator = np.random.default_rng(0)
    x, y = generator.normal(0, 10, 300), generator.integers(0, 2, 300).astype(float)
    x[:20] = x[20:40]
    before = exact(truth.single_task_outputs(x, y))["auroc"]
    assert exact(truth.single_task_outputs(x**3, y))["auroc"] == before
    assert exact(truth.single_task_outputs(-x, y))["auroc"] == pytest.approx(1 - before, rel=1e-12)
