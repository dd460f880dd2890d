"""Finds columns, and values of columns, that predict a label almost perfectly, in a sample of training data."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from common.reader.parquet_file import open_parquet

SUSPICIOUS_AUC = 0.98

_MIN_SHARE = 0.01
"""Share of the rows from which on a value is judged."""
_MIN_RATE = 0.995
_MAX_BASE_RATE = 0.5
_FEW_VALUES = 20
_MIN_EVIDENCE = math.log(1e6)

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


class Implication(NamedTuple):
    """A value of a column with which nearly all rows have the label 1."""

    column: str
    label: str
    condition: str
    """The value, such as "is 1" or "is not null"."""
    num_rows: int
    num_positives: int
    base_rate: float


def find_implications(sample: Path, columns: Sequence[str], labels: Sequence[str]) -> list[Implication]:
    """Return the values with which nearly all rows have a label of 1 that is far rarer elsewhere.

    A value counts if it has at least 1% of the rows, and if chance explains its rate with a probability of less than
    one in a million, by Chernoff's bound exp(-n KL(rate || base rate)). Each pair of a column and a label is returned
    at most once, with the value of the most rows.

    Args:
      sample: Parquet file with the columns and the labels.
      columns: names of the columns.
      labels: names of the labels, which are 0 or 1.
    """
    found = []
    with open_parquet(sample) as file:
        truth = {label: _read(file, label).to_numpy(zero_copy_only=False) == 1 for label in labels}
        for name in columns:
            conditions = _conditions(_read(file, name))
            for label, is_positive in truth.items():
                implied = [
                    Implication(name, label, condition, *_counts(rows, is_positive))
                    for condition, rows in conditions.items()
                ]
                suspicious = [each for each in implied if _is_suspicious(each)]
                if suspicious:
                    found.append(max(suspicious, key=lambda each: each.num_rows))
    return found


def _conditions(values: pa.Array) -> dict[str, NDArray[np.bool_]]:
    """Return the rows of frequent values, those that are not 0, and those that are not null, by condition."""
    known = values.is_valid().to_numpy(zero_copy_only=False)
    conditions = {"is not null": known}
    if pa.types.is_nested(values.type):
        lengths = pc.fill_null(pc.list_value_length(values), 0).to_numpy(zero_copy_only=False)
        return {"is not empty": lengths > 0}
    other_than_0 = {}
    dictionary = pc.dictionary_encode(values)
    codes = np.where(known, dictionary.indices.fill_null(0).to_numpy(zero_copy_only=False), -1)
    counts = np.bincount(codes[known], minlength=len(dictionary.dictionary))
    # An amount that has been capped, such as 99999, may well imply a label.
    is_category = pa.types.is_string(values.type) or len(counts) <= _FEW_VALUES
    for code in np.flatnonzero(counts >= max(1, _MIN_SHARE * len(values))).tolist():
        value = dictionary.dictionary[code].as_py()
        if is_category:
            conditions[f"is {value}"] = codes == code
        if value == 0 and not isinstance(value, bool):
            other_than_0 = {"is not 0": known & (codes != code)}
    return conditions | other_than_0


def _counts(rows: NDArray[np.bool_], is_positive: NDArray[np.bool_]) -> tuple[int, int, float]:
    return int(np.count_nonzero(rows)), int(np.count_nonzero(rows & is_positive)), float(np.mean(is_positive))


def _is_suspicious(implication: Implication) -> bool:
    _, _, _, rows, positives, base_rate = implication
    if rows == 0 or not 0 < base_rate <= _MAX_BASE_RATE or positives < _MIN_RATE * rows:
        return False
    rate = positives / rows
    divergence = rate * math.log(rate / base_rate)
    if rate < 1:
        divergence += (1 - rate) * math.log((1 - rate) / (1 - base_rate))
    return rows * divergence > _MIN_EVIDENCE


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
