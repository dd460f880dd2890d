"""Finds columns that alone predict a label almost perfectly, in a sample of the training data."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from common.reader.parquet_file import open_parquet

SUSPICIOUS_AUC = 0.98

_MIN_OF_EACH_CLASS = 10
"""With fewer rows of a class, such an AUC occurs by chance."""


class Leak(NamedTuple):
    """A column that predicts a label almost perfectly."""

    column: str
    label: str
    auc: float


def find_leaks(sample: Path, columns: Sequence[tuple[str, bool]], labels: Sequence[str]) -> list[Leak]:
    """Return the pairs of column and label with an AUC above SUSPICIOUS_AUC, in the order of the columns.

    Args:
      sample: Parquet file with the columns and the labels.
      columns: names of the columns, and whether their values are categories.
      labels: names of the labels, which are 0 or 1.
    """
    with open_parquet(sample) as file:
        truth = {label: _read(file, label).to_numpy(zero_copy_only=False) == 1 for label in labels}
        leaks = []
        for name, is_category in columns:
            values = _read(file, name)
            for label, is_positive in truth.items():
                auc = auc_of_column(values, is_positive, is_category)
                if auc is not None and auc > SUSPICIOUS_AUC:
                    leaks.append(Leak(name, label, auc))
    return leaks


def auc_of_column(values: pa.Array, is_positive: NDArray[np.bool_], is_category: bool) -> float | None:
    """Return how well a column alone predicts a label, as an AUC of at least 0.5.

    A number predicts by its rank, a list by its length, a null by being lower than every value. A category predicts by
    the rate of its value in a random half of the rows, and is judged on the other half.

    Returns:
      The AUC, or None if the rows judged have too few of a class.
    """
    judged = np.ones(len(values), np.bool_)
    if is_category and not pa.types.is_nested(values.type):
        judged = np.random.default_rng(0).random(len(values)) < 0.5
        scores = _rates(values, is_positive, ~judged)
    else:
        scores = _ranks(values)
    scores, is_positive = scores[judged], is_positive[judged]
    num_positives = int(np.count_nonzero(is_positive))
    if min(num_positives, len(is_positive) - num_positives) < _MIN_OF_EACH_CLASS:
        return None
    auc = _auc(scores, is_positive)
    return max(auc, 1 - auc)


def _read(file: Any, name: str) -> pa.Array:
    column = file.read(columns=[name]).column(name)
    return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)


def _rates(values: pa.Array, is_positive: NDArray[np.bool_], known: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the rate of each row's value among the known rows, or of all of them if none has the value."""
    codes = pc.dictionary_encode(values, null_encoding="encode").indices.to_numpy(zero_copy_only=False)
    size = int(codes.max(initial=-1)) + 1
    rows = np.bincount(codes[known], minlength=size)
    positives = np.bincount(codes[known & is_positive], minlength=size)
    base_rate = float(is_positive[known].mean()) if known.any() else 0.0
    rates: NDArray[np.float64] = np.where(rows > 0, positives / np.maximum(rows, 1), base_rate)
    by_row: NDArray[np.float64] = rates[codes]
    return by_row


def _ranks(values: pa.Array) -> NDArray[np.float64]:
    """Return numbers that order the rows: the values, with -inf for null and NaN."""
    if pa.types.is_nested(values.type):
        values = pc.list_value_length(values)
    elif pa.types.is_temporal(values.type):
        values = values.cast(pa.timestamp("us"), safe=False).view(pa.int64())
    numbers = values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return np.where(np.isnan(numbers), -np.inf, numbers)


def _auc(scores: NDArray[np.float64], is_positive: NDArray[np.bool_]) -> float:
    """Return the share of pairs of a positive and a negative that the scores order correctly; a tie counts as half."""
    _, places = np.unique(scores, return_inverse=True)
    positives = np.bincount(places, weights=is_positive)
    negatives = np.bincount(places, weights=~is_positive)
    below = np.cumsum(negatives) - negatives
    return float(np.sum(positives * (below + negatives / 2)) / (positives.sum() * negatives.sum()))
