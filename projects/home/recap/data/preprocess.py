"""Preprocessing of rows as functions of numpy arrays. docs/preprocessing.md gives the formulas."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

_MS_PER_HOUR = 3_600_000


def rectified(
    labels: NDArray[Any], served: NDArray[Any], impressed: NDArray[Any], engaged: NDArray[Any], window_in_hours: float
) -> NDArray[Any]:
    """Return the labels, set to 0 if the impression or the engagement came at or after the end of the window.

    The window begins with serving. A time before serving is within the window, and so is a missing impression or
    engagement time stored as 0.

    Args:
      labels: 0 or 1, [rows].
      served: time of serving in milliseconds since any epoch, integer or float, [rows].
      impressed: time of the impression, in the same unit, [rows].
      engaged: time of the engagement, in the same unit, [rows].
      window_in_hours: length of the window.

    Returns:
      A new array with the dtype of `labels`.
    """
    window = window_in_hours * _MS_PER_HOUR
    # Integer differences could wrap around and float32 would round; float64 represents every millisecond.
    served, impressed, engaged = (times.astype(np.float64) for times in (served, impressed, engaged))
    within = (impressed - served < window) & (engaged - served < window)
    return np.where(within, labels, 0).astype(labels.dtype)


def downsampled(
    is_positive: NDArray[np.bool_], keep: int, batch_multiplier: int, rng: np.random.Generator
) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Choose `keep` of the rows read for one lane of a batch: the positives, then negatives to fill the rest.

    If there are negatives, one place is reserved for them so that neither class is lost. Within a class, rows are drawn
    uniformly without replacement; if k of n rows are kept, each has weight n / (k * batch_multiplier). The expected
    weighted sum of any quantity over the kept rows then equals its sum over the rows read divided by batch_multiplier.

    Args:
      is_positive: True for each positive row, bool [rows]. The last share of an evaluation may have fewer than
        keep * batch_multiplier rows.
      keep: number of rows to keep, at least 2.
      batch_multiplier: number of rows read for each row kept.
      rng: random generator for the choice.

    Returns:
      Positions of the kept rows, ascending, [min(keep, rows)], and their weights, float32 of the same shape.
    """
    positives, negatives = np.flatnonzero(is_positive), np.flatnonzero(~is_positive)
    num_positives = min(len(positives), keep - min(len(negatives), 1))
    num_negatives = min(len(negatives), keep - num_positives)
    rows, weights = [], []
    for rows_of_class, num_kept in ((positives, num_positives), (negatives, num_negatives)):
        if num_kept:
            rows.append(rng.choice(rows_of_class, num_kept, replace=False))
            weights.append(np.full(num_kept, len(rows_of_class) / (num_kept * batch_multiplier), np.float32))
    if not rows:
        return np.empty(0, np.intp), np.empty(0, np.float32)
    chosen, weight = np.concatenate(rows), np.concatenate(weights)
    order = np.argsort(chosen)
    return chosen[order], weight[order]
