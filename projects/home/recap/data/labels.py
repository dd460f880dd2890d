"""Builds the labels and weights of a batch from the columns that preparation.py prepares."""

from collections.abc import Mapping
from typing import NamedTuple

import torch

from common.reader.reader import Columns
from projects.home.recap.data.preparation import LABELS, REFERENCES, WEIGHT


class Labels(NamedTuple):
    """Labels of a batch, each [batch, tasks] float32; reference_probabilities may be missing."""

    labels: torch.Tensor
    weights: torch.Tensor
    reference_probabilities: torch.Tensor | None


class LabelBuilder:
    """Builds Labels. Weights are those of the rows, times the inverse of the sampling rates."""

    def __init__(self, sampling_rates: Mapping[str, tuple[float, float]]) -> None:
        """Prepare the weights.

        Args:
          sampling_rates: sampling rates of positives and negatives that the weights correct for, keyed by task in the
            order of labels and weights.
        """
        positive, negative = torch.tensor(list(sampling_rates.values())).T
        self._sampled = bool((positive != 1).any() or (negative != 1).any())
        self._positive_factor, self._negative_factor = 1 / positive, 1 / negative

    def __call__(self, columns: Columns, weights: torch.Tensor) -> Labels:
        """Return the labels of a batch, given its prepared columns and the weights of its rows, float32 [batch]."""
        labels = columns[LABELS].float()
        if WEIGHT in columns:
            weights = weights * columns[WEIGHT].float()
        weights = weights[:, None].expand_as(labels).contiguous()
        if self._sampled:
            weights *= torch.where(labels == 1, self._positive_factor, self._negative_factor)
        return Labels(labels, weights, columns[REFERENCES].float() if REFERENCES in columns else None)
