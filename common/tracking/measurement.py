"""Defines measurements, and the interface of the trackers that record them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol


@dataclass(frozen=True)
class Measurement:
    """Values measured after `step` steps.

    Attributes:
      step: number of optimizer updates done.
      mode: "train" for means since the previous measurement, "evaluate" for one pass over a partition.
      partition: name of the evaluation set; None for training.
      metrics: flat map of the values that a repeated run reproduces bit for bit. None if a metric is not available.
      timing: flat map of the values that depend on the clock or the machine.
    """

    step: int
    mode: Literal["train", "evaluate"]
    partition: str | None
    metrics: Mapping[str, float | int | None]
    timing: Mapping[str, float | int | bool]


class Tracker(Protocol):
    """Records measurements. All calls come from one thread.

    A tracker may block. One that raises is switched off.
    """

    def log(self, measurement: Measurement) -> None:
        """Record one measurement."""

    def finish(self) -> None:
        """Release the tracker's resources. Called once, even if log() has failed."""
