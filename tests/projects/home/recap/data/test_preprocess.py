"""Tests of the formulas of docs/preprocessing.md on known rows."""

import itertools
import math

import numpy as np
import pytest
import torch

from core.losses import multi_task_cross_entropy
from projects.home.recap.data.preprocess import downsampled, rectified

HOUR = 3_600_000
SERVED = 1_700_000_000_000

# --- rectified ---


@pytest.mark.parametrize(
    ("impressed", "engaged", "stays"),
    [
        (0, 0, True),
        (HOUR, 2 * HOUR, True),
        (HOUR, 3 * HOUR - 1, True),
        (HOUR, 3 * HOUR, False),  # exactly at the end of the window
        (3 * HOUR - 1, HOUR, True),
        (3 * HOUR, HOUR, False),
        (5 * HOUR, 6 * HOUR, False),
        (-HOUR, -2 * HOUR, True),  # before serving
        (HOUR, -SERVED, True),  # unknown, stored as 0
        (-SERVED, HOUR, True),
        (-SERVED, 3 * HOUR, False),
    ],
)
@pytest.mark.parametrize("dtype", [np.int64, np.uint64, np.float64])
def test_a_label_stays_if_impression_and_engagement_are_within_the_window(impressed, engaged, stays, dtype):
    """Times are in ms after serving."""
    served, impressed, engaged = np.array([[SERVED], [SERVED + impressed], [SERVED + engaged]]).astype(dtype)
    assert rectified(np.array([1], np.int8), served, impressed, engaged, 3.0).tolist() == [int(stays)]
    assert rectified(np.array([0], np.int8), served, impressed, engaged, 3.0).tolist() == [0]


@pytest.mark.parametrize(
    ("served", "engaged", "stays"), [(SERVED, -(2**63), 1), (-1, 2**63 - 1, 0), (2**63 - 1, -5, 1)]
)
def test_times_at_the_limits_of_int64(served, engaged, stays):
    """Pandas stores a missing time (NaT) as the smallest int64."""
    served, engaged = np.array([[served], [engaged]])
    assert rectified(np.array([1], np.int8), served, served, engaged, 3.0).tolist() == [stays]


def test_rectifies_row_by_row_without_changing_its_input():
    labels = np.array([1, 1, 0, 1], np.int8)
    served = np.full(4, SERVED)
    impressed = served + np.array([1, 1, 1, 2]) * HOUR // 4
    engaged = served + np.array([1, 2, 1, 2]) * HOUR // 4
    result = rectified(labels, served, impressed, engaged, 0.5)
    assert result.tolist() == [1, 0, 0, 0]
    assert result.dtype == np.int8
    assert labels.tolist() == [1, 1, 0, 1], "the input is unchanged"
    assert rectified(labels, served, impressed, engaged, 0.51).tolist() == [1, 1, 0, 1]


# --- downsampled ---

FLAGS = "is_positive, keep, multiplier"
SHARES = [
    ([1, 0, 0, 0, 0, 0], 3, 2),
    ([0, 1, 0, 0, 1, 0], 2, 3),  # more positives than fit next to a negative
    ([1, 0, 1, 0, 1, 0, 1, 0], 4, 2),
    ([1, 1, 1, 1, 0, 1], 2, 3),
    ([1, 1, 1, 1, 1, 1], 3, 2),
    ([0, 0, 0, 0, 0, 0], 2, 3),
    ([1, 0, 0], 3, 1),
    # Shorter shares at the end of an evaluation.
    ([0, 1, 0, 0], 3, 2),
    ([0, 1], 3, 2),
    ([0], 3, 4),
    ([1], 2, 4),
    ([], 3, 2),
]


def outcomes(flags: list[int], keep: int, multiplier: int, draws: int = 600) -> dict[tuple[int, ...], np.ndarray]:
    """Return every subset that is chosen, with its weights, after checking that all are equally likely."""
    found: dict[tuple[int, ...], np.ndarray] = {}
    counts: dict[tuple[int, ...], int] = {}
    for seed in range(draws):
        rows, weights = downsampled(np.array(flags, bool), keep, multiplier, np.random.default_rng(seed))
        key = tuple(rows.tolist())
        assert np.array_equal(found.setdefault(key, weights), weights), "the same rows have the same weights"
        counts[key] = counts.get(key, 0) + 1
    share = draws / len(found)
    assert max(abs(count - share) for count in counts.values()) < 5 * math.sqrt(share), "drawn uniformly"
    return found


@pytest.mark.parametrize(FLAGS, SHARES)
def test_all_positives_are_kept_except_that_one_place_is_for_a_negative(is_positive, keep, multiplier):
    found = outcomes(is_positive, keep, multiplier)
    positives = [row for row, flag in enumerate(is_positive) if flag]
    negatives = [row for row, flag in enumerate(is_positive) if not flag]
    num_kept = min(keep, len(is_positive))
    num_positives = min(len(positives), keep - 1 if negatives else keep)
    assert found.keys() == {
        tuple(sorted(p + n))
        for p in itertools.combinations(positives, num_positives)
        for n in itertools.combinations(negatives, num_kept - num_positives)
    }


@pytest.mark.parametrize(FLAGS, SHARES)
def test_the_expected_weighted_sum_is_the_sum_over_all_rows_divided_by_the_multiplier(is_positive, keep, multiplier):
    """Computes the expectation exactly, over all subsets, for arbitrary values of the rows."""
    values = np.random.default_rng(0).normal(size=(len(is_positive), 5))
    found = outcomes(is_positive, keep, multiplier)
    sums = [weights.astype(np.float64) @ values[list(rows)] for rows, weights in found.items()]
    np.testing.assert_allclose(np.mean(sums, axis=0), values.sum(axis=0) / multiplier, rtol=1e-6, atol=1e-6)
    for weights in found.values():
        np.testing.assert_allclose(weights.sum(), len(is_positive) / multiplier, rtol=1e-6)


@pytest.mark.parametrize(FLAGS, [share for share in SHARES if len(share[0]) == share[1] * share[2]])
def test_loss_and_gradient_are_unbiased(is_positive, keep, multiplier):
    """The expected loss and gradient of a full share are those of the mean loss over all rows read."""
    rng = np.random.default_rng(1)
    features = torch.from_numpy(rng.normal(size=(len(is_positive), 3)))
    labels = torch.from_numpy(np.stack([is_positive, rng.integers(0, 2, len(is_positive))], axis=1)).double()

    def loss_and_gradient(rows: list[int], weights: torch.Tensor) -> torch.Tensor:
        weight = torch.tensor([[0.5, -0.25, 1.0], [0.0, 2.0, -1.0]], dtype=torch.float64, requires_grad=True)
        logits = features[rows] @ weight.T
        loss = multi_task_cross_entropy(logits, labels[rows].float(), weights[:, None].expand(-1, 2), torch.ones(2))
        [gradient] = torch.autograd.grad(loss, weight)
        return torch.cat([loss.double().reshape(1), gradient.reshape(-1)])

    found = outcomes(is_positive, keep, multiplier)
    sampled = [loss_and_gradient(list(rows), torch.from_numpy(weights)) for rows, weights in found.items()]
    expected = loss_and_gradient(list(range(len(is_positive))), torch.ones(len(is_positive)))
    torch.testing.assert_close(torch.stack(sampled).mean(dim=0), expected, rtol=1e-5, atol=1e-6)


def test_weights_match_the_example_of_the_documentation():
    """Keeps both positives, of weight 2 / (2 * 2), and two of the six negatives, of weight 6 / (2 * 2)."""
    rows, weights = downsampled(np.array([0, 0, 1, 0, 0, 0, 1, 0], bool), 4, 2, np.random.default_rng(0))
    assert {2, 6} < set(rows.tolist())
    assert weights.dtype == np.float32
    assert dict(zip(rows.tolist(), weights.tolist(), strict=True)) == {
        row: 0.5 if row in (2, 6) else 1.5 for row in rows.tolist()
    }


def test_a_multiplier_of_one_keeps_all_rows_with_weight_1():
    rows, weights = downsampled(np.array([0, 1, 0, 1], bool), 4, 1, np.random.default_rng(0))
    assert rows.tolist() == [0, 1, 2, 3]
    assert weights.tolist() == [1, 1, 1, 1]
