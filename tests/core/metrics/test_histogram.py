"""The errors of metrics from bins stay within the documented bounds for any predictions."""

from typing import Any

import numpy as np
import pytest
import torch

from core.metrics.histogram import BIN_WIDTH, BINS, LOGIT_RANGE
from core.metrics.multi_task import MultiTaskMetrics
from tests.support import metrics_truth as truth
from tests.support.metrics_truth import EPSILON, Array

POSITIONS = np.linspace(0, 1, 65)  # within a bin


def binned(p: Array, y: Array, w: Array) -> dict[str, Any]:
    metrics = MultiTaskMetrics(["t"], torch.device("cpu"))
    metrics.update(truth.single_task_outputs(p, y, w))
    return {name.removeprefix("t/"): value for name, value in metrics.compute().items()}


def sigmoid(logits: Array) -> Array:
    return 1 / (1 + np.exp(-logits))


def bin_of(p: Array) -> Array:
    clipped = np.clip(p, EPSILON, 1 - EPSILON)
    return np.floor((np.log(clipped / (1 - clipped)) + LOGIT_RANGE) / BIN_WIDTH)


def auroc_bound(p: Array, y: Array, w: Array) -> float:
    """Return half the weighted share of the pairs that fall into one bin."""
    positive, negative = y == 1, y == 0
    pairs = w[positive, None] * w[None, negative]
    bins = bin_of(p)
    return float((pairs * (bins[positive, None] == bins[None, negative])).sum() / pairs.sum() / 2)


def nrce_bound(p: Array, y: Array, w: Array) -> float:
    """Return the mean, in points, of how much the change in each row's loss from scaling can vary within its bin."""
    factor = np.average(y, weights=w) / np.average(p, weights=w)

    def change(position: Array) -> Array:
        q = sigmoid((bin_of(p) + position) * BIN_WIDTH - LOGIT_RANGE)
        before, after = (np.clip(x, EPSILON, 1 - EPSILON) for x in (q, factor * q))
        return np.where(y == 1, np.log(before / after), np.log((1 - before) / (1 - after)))

    middle = change(np.full_like(p, 0.5))
    furthest = np.max([np.abs(change(np.full_like(p, position)) - middle) for position in POSITIONS], axis=0)
    return float(100 * np.average(furthest, weights=w) / truth.naive_loss(y, w))


def crowded(generator: np.random.Generator) -> tuple[Array, Array, Array]:
    """Return predictions within the width of two bins, many of them equal."""
    p = sigmoid(1.0 + generator.integers(0, 8, 400) * BIN_WIDTH / 4)
    return p, generator.integers(0, 2, 400).astype(float), generator.random(400)


def at_the_edges(generator: np.random.Generator) -> tuple[Array, Array, Array]:
    """Return negatives just above the lower edge of their bin and positives just below the upper edge."""
    bins = generator.integers(BINS // 2 - 3000, BINS // 2 + 1000, 400)
    y = (generator.random(400) < 0.3).astype(float)
    return sigmoid((bins + 0.001 + 0.998 * y) * BIN_WIDTH - LOGIT_RANGE), y, generator.random(400)


def far_too_low(generator: np.random.Generator) -> tuple[Array, Array, Array]:
    """Return predictions with a factor of about 50, so that many scaled predictions are clipped to 1."""
    p = sigmoid(generator.normal(-5, 1.5, 400))
    return p, (generator.random(400) < 0.5).astype(float), generator.random(400)


def far_too_high(generator: np.random.Generator) -> tuple[Array, Array, Array]:
    p = sigmoid(generator.normal(2, 3, 400))
    return p, (generator.random(400) < 0.01 + 0.05 * p).astype(float), generator.random(400)


def certain(generator: np.random.Generator) -> tuple[Array, Array, Array]:
    """Return predictions that are mostly exactly 0 or 1, and rarely right."""
    p = generator.choice([0.0, 1e-13, 1e-11, 0.2, 1 - 1e-11, 1.0], 400)
    return p, (generator.random(400) < 0.3).astype(float), generator.random(400)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("data", [crowded, at_the_edges, far_too_low, far_too_high, certain])
def test_auroc_and_nrce_are_within_their_bounds(data, seed):
    p, y, w = data(np.random.default_rng(seed))
    found, expected = binned(p, y, w), truth.task_metrics(truth.single_task_outputs(p, y, w), 0)
    assert abs(found["auroc"] - expected["auroc"]) <= auroc_bound(p, y, w) + 1e-12
    assert abs(found["nrce"] - expected["nrce"]) <= nrce_bound(p, y, w) + 1e-8


def test_the_auroc_bound_is_reached_if_all_predictions_are_in_one_bin():
    y = np.array([0.0, 1.0] * 50)
    p = sigmoid((BINS // 2 + 0.2 + 0.6 * y) * BIN_WIDTH - LOGIT_RANGE)
    assert auroc_bound(p, y, np.ones(100)) == 0.5
    assert truth.task_metrics(truth.single_task_outputs(p, y), 0)["auroc"] == 1.0
    assert binned(p, y, np.ones(100))["auroc"] == 0.5


@pytest.mark.parametrize("calibration", [0.4, 0.8, 0.99, 1.2, 3.0])
@pytest.mark.parametrize("position", [0.001, 0.5, 0.999])
def test_nrce_is_within_the_documented_bound(calibration, position):
    """All predictions have the same position within their bins, so that errors do not cancel."""
    generator = np.random.default_rng(0)
    p = sigmoid((generator.integers(BINS // 2 - 2500, BINS // 2 - 1000, 5000) + position) * BIN_WIDTH - LOGIT_RANGE)
    y, w = (generator.random(5000) < p).astype(float), generator.random(5000)
    w[y == 1] *= np.average(p, weights=w) / np.average(y, weights=w) / calibration  # close to the desired calibration
    found = binned(p, y, w)
    largest = p.max() * np.average(y, weights=w) / np.average(p, weights=w)
    assert largest < 1
    assert np.average(y, weights=w) < 0.5
    bound = 0.062 * abs(1 - found["calibration"]) / (1 - largest)
    error = abs(found["nrce"] - truth.nrce(p, y, w))
    assert error <= bound + 1e-9
    assert bound < 0.3


def test_memory_does_not_grow_with_the_number_of_examples():
    metrics = MultiTaskMetrics(["t"], torch.device("cpu"))
    outputs = truth.single_task_outputs(np.full(1000, 0.5), np.ones(1000))
    metrics.update(outputs)

    def numbers() -> int:
        kept = [*vars(metrics).values(), *vars(metrics._scores).values()]
        return sum(value.numel() for value in kept if isinstance(value, torch.Tensor))

    before = numbers()
    for _ in range(3):
        metrics.update(outputs)
    assert numbers() == before
    assert not any(isinstance(value, list) and len(value) > 1 for value in vars(metrics._scores).values())
