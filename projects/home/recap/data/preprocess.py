"""What happens to rows between the files and the batch, as functions of numpy arrays. docs/preprocessing.md has the
formulas."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

_MS_PER_HOUR = 3_600_000


def rectified(
    labels: NDArray[Any], served: NDArray[Any], impressed: NDArray[Any], engaged: NDArray[Any], window_in_hours: float
) -> NDArray[Any]:
    """Labels, 0 where the impression or the engagement came as late as the window after serving, or later.

    What came before serving is within the window, and so is a missing time stored as 0.

    Args:
      labels: 0 or 1, [rows].
      served: milliseconds since a time of one's own, integer or float, [rows].
      impressed: likewise.
      engaged: likewise.
      window_in_hours: the window.

    Returns:
      a new array of the labels' type.
    """
    window = window_in_hours * _MS_PER_HOUR
    # Differences of integers could wrap around, those of float32 be rounded; float64 has every millisecond.
    served, impressed, engaged = (times.astype(np.float64) for times in (served, impressed, engaged))
    within = (impressed - served < window) & (engaged - served < window)
    return np.where(within, labels, 0).astype(labels.dtype)


def downsampled(
    is_positive: NDArray[np.bool_], keep: int, batch_multiplier: int, rng: np.random.Generator
) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Chooses `keep` of the rows read for a lane's share of a batch: the positives, and negatives that fill it up.

    A negative keeps a place if there is one, so that neither class is lost. Within a class rows are drawn uniformly
    without replacement and weigh n / (k * batch_multiplier) where k of n are kept. The expectation of the weighted sum
    of anything over the rows kept is then its sum over the rows read, over batch_multiplier: for a full share, of
    keep * batch_multiplier rows, `keep` times its mean.

    Args:
      is_positive: of the rows read, bool [rows]; an evaluation's last share may have fewer than
        keep * batch_multiplier.
      keep: rows wanted, at least 2.
      batch_multiplier: rows read for each row wanted.
      rng: draws them.

    Returns:
      positions of the rows kept, ascending, [min(keep, rows)], and their weights.
    """
    positives, negatives = np.flatnonzero(is_positive), np.flatnonzero(~is_positive)
    num_positives = min(len(positives), keep - min(len(negatives), 1))
    num_negatives = min(len(negatives), keep - num_positives)
    rows, weights = [], []
    for of_class, num_kept in ((positives, num_positives), (negatives, num_negatives)):
        if num_kept:
            rows.append(rng.choice(of_class, num_kept, replace=False))
            weights.append(np.full(num_kept, len(of_class) / (num_kept * batch_multiplier), np.float32))
    if not rows:
        return np.empty(0, np.intp), np.empty(0, np.float32)
    chosen, weight = np.concatenate(rows), np.concatenate(weights)
    order = np.argsort(chosen)
    return chosen[order], weight[order]
