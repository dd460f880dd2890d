"""Defines the interface between the loop and metrics."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch


class Metrics(Protocol):
    """Accumulates the outputs of a model over a partition."""

    @property
    def headline(self) -> Sequence[str]:
        """Names of the metrics to show in the log."""

    def update(self, outputs: Mapping[str, torch.Tensor]) -> None:
        """Add the model's outputs for a batch, [batch, ...]."""

    def compute(self) -> dict[str, float | int | None]:
        """Return the metrics over all ranks by name; None for an undefined metric. Collective."""
