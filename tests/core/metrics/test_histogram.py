"""The errors of metrics from bins stay within the documented bounds for any predictions."""

from typing import Any

import numpy as np
import pytest
import torch

from core.metrics.histogram import (
    BIN_WIDTH,
    BINS,
    FARTHEST_LOGIT,
    LINEAR_BINS,
    LOGIT_RANGE,
    OUTER_BINS,
    RELATIVE_WIDTH,
    bin_positions,
    logits_at,
)
from core.metrics.multi_task import MultiTaskMetrics
from tests.support import metrics_truth as truth
from tests.support.metrics_truth import Array

POSITIONS = np.linspace(0, 1, 65)  # within a bin


def binned(x: Array, y: Array, w: Array) -> dict[str, Any]:
    metrics = MultiTaskMetrics(["t"], torch.device("cpu"))
    metrics.update(truth.single_task_outputs(x, y, w))
    return {name.removeprefix("t/"): value for name, value in metrics.compute().items()}


def bin_of(x: Array) -> Array:
    """Return the bin of each logit, from the definition of the bins."""
    size = np.abs(x)
    inner = size / BIN_WIDTH
    outer = LINEAR_BINS / 2 + np.log(np.maximum(size, LOGIT_RANGE) / LOGIT_RANGE) / RELATIVE_WIDTH
    return np.floor(np.copysign(np.where(size <= LOGIT_RANGE, inner, outer), x))


def auroc_bound(x: Array, y: Array, w: Array) -> float:
    """Return half the weighted share of the pairs that fall into one bin."""
    positive, negative = y == 1, y == 0
    pairs = w[positive, None] * w[None, negative]
    bins = bin_of(x)
    return float((pairs * (bins[positive, None] == bins[None, negative])).sum() / pairs.sum() / 2)


def pr_auc_bound(x: Array, y: Array, w: Array) -> float:
    """Return the mean, over positives, of how much the precision can vary within their bin."""
    bins = bin_of(x)
    bounds = np.zeros_like(x)
    for row in np.flatnonzero(y == 1):
        above, within = bins > bins[row], bins == bins[row]
        positives_above, positives = w[above & (y == 1)].sum(), w[within & (y == 1)].sum()
        negatives_above, negatives = w[above & (y == 0)].sum(), w[within & (y == 0)].sum()
        highest = (positives_above + positives) / (positives_above + positives + negatives_above)
        if (lowest := positives_above + negatives_above + negatives) > 0:
            lowest = positives_above / lowest
        bounds[row] = highest - lowest
    return float((w * bounds).sum() / w[y == 1].sum())


def nrce_bound(x: Array, y: Array, w: Array) -> float:
    """Return the mean, in points, of how much the change in each row's loss from scaling can vary within its bin."""
    factor = float(np.average(y, weights=w) / np.average(truth.probabilities_of(x), weights=w))

    def change(position: float) -> Array:
        within = logits_at(torch.from_numpy(bin_of(x) + position)).numpy()
        return truth.scaled_losses(within, y, factor) - truth.losses(within, y)

    middle = change(0.5)
    furthest = np.max([np.abs(change(position) - middle) for position in POSITIONS], axis=0)
    return float(100 * np.average(furthest, weights=w) / truth.naive_loss(y, w))


def crowded(generator: np.random.Generator) -> tuple[Array, Array, Array]:
    """Return logits within the width of two bins, many of them equal."""
    x = 1.0 + generator.integers(0, 8, 400) * BIN_WIDTH / 4
    return x, generator.integers(0, 2, 400).astype(float), generator.random(400)


def at_the_edges(generator: np.random.Generator) -> tuple[Array, Array, Array]:
    """Return negatives just above the lower edge of their bin and positives just below the upper edge."""
    bins = generator.integers(-3000, 1000, 400)
    y = (generator.random(400) < 0.3).astype(float)
    return (bins + 0.001 + 0.998 * y) * BIN_WIDTH, y, generator.random(400)


def far_too_low(generator: np.random.Generator) -> tuple[Array, Array, Array]:
    """Return predictions with a factor of about 50, so that many scaled predictions are clipped to 1."""
    x = generator.normal(-5, 1.5, 400)
    return x, (generator.random(400) < 0.5).astype(float), generator.random(400)


def far_too_high(generator: np.random.Generator) -> tuple[Array, Array, Array]:
    x = generator.normal(2, 3, 400)
    y = (generator.random(400) < 0.01 + 0.05 * truth.probabilities_of(x)).astype(float)
    return x, y, generator.random(400)


def certain(generator: np.random.Generator) -> tuple[Array, Array, Array]:
    """Return predictions that are mostly close to 0 or 1, and rarely right."""
    x = generator.choice([-700.0, -60.0, -27.9, -17.0, -1.4, 17.0, 27.9, 28.1, 60.0, 61.0, 700.0], 100)
    return x, (generator.random(100) < 0.3).astype(float), generator.random(100)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("data", [crowded, at_the_edges, far_too_low, far_too_high, certain])
def test_metrics_are_within_their_bounds(data, seed):
    x, y, w = data(np.random.default_rng(seed))
    found, expected = binned(x, y, w), truth.task_metrics(truth.single_task_outputs(x, y, w), 0)
    assert abs(found["auroc"] - expected["auroc"]) <= auroc_bound(x, y, w) + 1e-12
    assert abs(found["pr_auc"] - expected["pr_auc"]) <= pr_auc_bound(x, y, w) + 1e-12
    assert abs(found["nrce"] - expected["nrce"]) <= nrce_bound(x, y, w) + 1e-8


def test_the_auroc_bound_is_reached_if_all_predictions_are_in_one_bin():
    y = np.array([0.0, 1.0] * 50)
    x = (0.2 + 0.6 * y) * BIN_WIDTH
    assert auroc_bound(x, y, np.ones(100)) == 0.5
    assert truth.task_metrics(truth.single_task_outputs(x, y), 0)["auroc"] == 1.0
    assert binned(x, y, np.ones(100))["auroc"] == 0.5


@pytest.mark.parametrize("calibration", [0.4, 0.8, 0.99, 1.2, 3.0])
@pytest.mark.parametrize("position", [0.001, 0.5, 0.999])
def test_nrce_is_within_the_documented_bound(calibration, position):
    """All predictions have the same position within their bins, so that errors do not cancel."""
    generator = np.random.default_rng(0)
    x = (generator.integers(-2500, -1000, 5000) + position) * BIN_WIDTH
    p = truth.probabilities_of(x)
    y, w = (generator.random(5000) < p).astype(float), generator.random(5000)
    w[y == 1] *= np.average(p, weights=w) / np.average(y, weights=w) / calibration  # close to the desired calibration
    found = binned(x, y, w)
    largest = p.max() * np.average(y, weights=w) / np.average(p, weights=w)
    assert largest < 1
    assert np.average(y, weights=w) < 0.5
    bound = 0.062 * abs(1 - found["calibration"]) / (1 - largest)
    error = abs(found["nrce"] - truth.nrce(x, y, w))
    assert error <= bound + 1e-9
    assert bound < 0.3


def test_bins_are_ascending_and_logits_at_inverts_bin_positions():
    half = BINS // 2
    edges = logits_at(torch.arange(-half, half + 1, dtype=torch.float64))
    assert bool((edges.diff() > 0).all())
    assert edges[-1].item() == pytest.approx(FARTHEST_LOGIT, rel=1e-12)
    assert edges[half + LINEAR_BINS // 2].item() == LOGIT_RANGE
    assert torch.equal(edges, -edges.flip(0))
    torch.testing.assert_close(
        bin_positions(edges), torch.arange(-half, half + 1, dtype=torch.float64), rtol=1e-12, atol=1e-9
    )
    outer = edges[half + LINEAR_BINS // 2 :]
    assert len(outer) == OUTER_BINS + 1
    torch.testing.assert_close(
        outer[1:] / outer[:-1] - 1, torch.full((OUTER_BINS,), 0.0019, dtype=torch.float64), rtol=0.01, atol=0
    )


def test_logits_beyond_all_bins_are_tied_in_the_outermost_ones():
    x = np.array([-np.inf, -1e30, 1e30, np.inf])
    assert binned(x, np.array([0.0, 1.0, 0.0, 1.0]), np.ones(4))["auroc"] == (0.5 + 0 + 1 + 0.5) / 4


def test_memory_does_not_grow_with_the_number_of_examples():
    metrics = MultiTaskMetrics(["t"], torch.device("cpu"))
    outputs = truth.single_task_outputs(np.zeros(1000), np.ones(1000))
    metrics.update(outputs)

    def numbers() -> int:
        kept = [*vars(metrics).values(), *vars(metrics._scores).values()]
        return sum(value.numel() for value in kept if isinstance(value, torch.Tensor))

    before = numbers()
    for _ in range(3):
        metrics.update(outputs)
    assert numbers() == before
    assert not any(isinstance(value, list) and len(value) > 1 for value in vars(metrics._scores).values())
