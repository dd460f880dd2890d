"""Weights of labels correct for sampling."""

import torch

from projects.home.recap.data.labels import LabelBuilder
from projects.home.recap.data.preparation import LABELS, REFERENCES, WEIGHT


def test_weights_are_those_of_the_rows_times_the_inverse_of_the_sampling_rates():
    build = LabelBuilder({"like": (1.0, 0.25), "reply": (0.5, 1.0)})
    columns = {
        LABELS: torch.tensor([[1, 0], [0, 1], [0, 0]], dtype=torch.int8),
        WEIGHT: torch.tensor([3.0, 1.0, 2.0], dtype=torch.float64),
        REFERENCES: torch.tensor([[0.5, 0.25]] * 3, dtype=torch.float64),
    }
    labels, weights, references = build(columns, torch.tensor([1.0, 1.0, 0.0]))
    assert labels.tolist() == [[1, 0], [0, 1], [0, 0]]
    assert weights.tolist() == [[3, 3], [4, 2], [0, 0]]
    assert references is not None
    assert labels.dtype == weights.dtype == references.dtype == torch.float32


def test_rows_without_weights_or_sampling_count_once():
    labels = LabelBuilder({"like": (1.0, 1.0)})({LABELS: torch.tensor([[1], [0]], dtype=torch.int8)}, torch.ones(2))
    assert labels.weights.tolist() == [[1], [1]]
    assert labels.reference_probabilities is None
