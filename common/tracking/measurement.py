"""What is measured, and the interface of a sink that takes it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol


@dataclass(frozen=True)
class Measurement:
    """What was measured after `step` steps.

    step: optimizer updates done so far.
    mode: "train" (means since the last one) or "evaluate" (one pass over a partition).
    partition: name of the evaluated data; None in training.
    metrics: flat map, bit-reproducible by a repeated run; None where a metric is not available.
    timing: flat map of all that depends on the clock or the machine.
    """

    step: int
    mode: Literal["train", "evaluate"]
    partition: str | None
    metrics: Mapping[str, float | int | None]
    timing: Mapping[str, float | int | bool]


class Tracker(Protocol):
    """A sink of measurements. It may block, and raise: it is switched off then. All calls come from one thread."""

    def log(self, measurement: Measurement) -> None:
        """Takes one measurement."""

    def finish(self) -> None:
        """Releases what the sink holds. Called once, also after a failed log()."""
