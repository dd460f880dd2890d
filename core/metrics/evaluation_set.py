"""Defines evaluation sets: the data that a partition reads, and the metrics that are computed on it."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch

from common.reader.reader import BatchReader
from core.metrics.interface import Metrics


@dataclass(frozen=True)
class EvaluationSet:
    """Data to evaluate on, and the metrics to compute on it. Its name is called a partition.

    Attributes:
      reader: this rank's share of the data.
      make_metrics: creates the metrics of one evaluation, on a device.
    """

    reader: BatchReader[Any]
    make_metrics: Callable[[torch.device], Metrics]

    def metric_names(self, device: torch.device) -> Collection[str]:
        """Return the names of the metrics. Collective."""
        # Without examples, the values mean nothing, but all names are present.
        return self.make_metrics(device).compute().keys()
