"""Keeps the state of the metrics of each unit until all are finished, so that a killed run loses none of it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common.files.durable import atomic_file
from core.metrics.multi_task import MultiTaskMetrics
from projects.home.recap.predict.output import UnitResult
from projects.home.recap.predict.units import Unit


class UnitMetrics:
    """A directory with a file for each unit. It is a UnitOutput."""

    def __init__(self, directory: Path) -> None:
        """Describe the directory; nothing is created yet."""
        self._directory = directory

    def is_finished(self, unit: Unit) -> bool:
        """Return whether the file of a unit exists; see UnitOutput."""
        return self._path(unit).exists()

    def write(self, result: UnitResult) -> None:
        """Write the file of a unit; see UnitOutput."""
        with atomic_file(self._path(result.unit)) as partial, partial.open("wb") as file:
            np.savez(file, **result.metrics)

    def add_to(self, metrics: MultiTaskMetrics, units: Sequence[Unit]) -> None:
        """Add the states of units to metrics, in order. Raises OSError."""
        for unit in units:
            with np.load(self._path(unit)) as state:
                metrics.add(dict(state))

    def _path(self, unit: Unit) -> Path:
        return self._directory / f"metrics-{unit.index}.npz"
