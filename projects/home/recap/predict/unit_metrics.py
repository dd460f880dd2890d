"""Keeps the state of the metrics of each unit until all are finished, so that a killed run loses none of it."""

import secrets
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common.files.durable import sync_descriptor, sync_directory
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
        path = self._path(result.unit)
        partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        with partial.open("wb") as file:
            np.savez(file, **result.metrics)
            file.flush()
            sync_descriptor(file.fileno())
        partial.replace(path)
        sync_directory(path.parent)

    def add_to(self, metrics: MultiTaskMetrics, units: Sequence[Unit]) -> None:
        """Add the states of units to metrics, in order. Raises OSError."""
        for unit in units:
            with np.load(self._path(unit)) as state:
                metrics.add(dict(state))

    def _path(self, unit: Unit) -> Path:
        return self._directory / f"metrics-{unit.index}.npz"
