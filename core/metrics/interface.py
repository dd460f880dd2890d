"""What the loop asks of metrics."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch


class Metrics(Protocol):
    """Accumulates the outputs of a model over a partition."""

    @property
    def headline(self) -> Sequence[str]:
        """The metrics that a line of the log tells."""

    def update(self, outputs: Mapping[str, torch.Tensor]) -> None:
        """Adds a batch: the outputs of the model, [batch, ...]."""

    def compute(self) -> dict[str, float | int | None]:
        """Metrics over all ranks, by name; None where one is not defined. Collective."""
