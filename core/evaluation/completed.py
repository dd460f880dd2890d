"""Reads which evaluations are complete from a metrics file, and records those of the follower there."""

import logging
from collections.abc import Collection
from pathlib import Path

from common.errors import UserError
from common.tracking.measurement import Measurement
from common.tracking.metrics_file import MetricsFile, read_metrics

logger = logging.getLogger(__name__)


def completed_partitions(metrics: Path) -> dict[int, list[str]]:
    """Return the evaluated partitions by step, as a metrics file records them; {} if there is no file."""
    partitions: dict[int, list[str]] = {}
    for measurement in read_metrics(metrics):
        if measurement.mode == "evaluate":
            partitions.setdefault(measurement.step, []).append(str(measurement.partition))
    return partitions


class CompletedEvaluations:
    """The completed evaluations in metrics-evaluator.jsonl, on rank 0."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: MetricsFile | None = None
        self._partitions: dict[int, list[str]] = {}

    def open(self) -> None:
        """Read the file, and remove an incomplete last line, whose evaluation was interrupted."""
        self._file = MetricsFile(self._path)
        self._partitions = completed_partitions(self._path)

    def __contains__(self, evaluation: tuple[int, str]) -> bool:
        """Return whether the evaluation at (step, partition) is complete."""
        step, partition = evaluation
        return partition in self._partitions.get(step, [])

    def __bool__(self) -> bool:
        """Return whether any evaluation is complete."""
        return bool(self._partitions)

    def log(self, partitions: Collection[str]) -> None:
        """Log which evaluations of the requested partitions will not be repeated."""
        steps = [step for step, names in self._partitions.items() for name in names if name in partitions]
        if steps:
            logger.info(
                "%s contains %d evaluation(s) of steps %d to %d. They are not repeated, even if the configured metrics "
                "or data have changed; move the file away to evaluate again",
                self._path,
                len(steps),
                min(steps),
                max(steps),
            )

    def add(self, measurement: Measurement) -> None:
        """Record a complete evaluation.

        Raises:
          UserError: the line cannot be written. Without it the evaluation would be repeated.
        """
        assert self._file is not None
        assert measurement.partition is not None
        try:
            self._file.append(measurement)
        except OSError as error:
            raise UserError(
                f"{self._path}: cannot write this file: {error.strerror}. If the disk is full, free some space. Then "
                "run the same command again to continue"
            ) from error
        self._partitions.setdefault(measurement.step, []).append(measurement.partition)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
