"""Which partitions of which steps the evaluator beside a training run has evaluated: the lines of its metrics file."""

import logging
from collections.abc import Collection
from pathlib import Path

from common.errors import UserError
from common.tracking.measurement import Measurement
from common.tracking.metrics_file import MetricsFile, read_metrics

logger = logging.getLogger(__name__)


def evaluated(metrics: Path) -> dict[int, list[str]]:
    """The partitions that are done, by step, as a metrics-evaluator.jsonl says; {} where there is none."""
    done: dict[int, list[str]] = {}
    for measurement in read_metrics(metrics):
        done.setdefault(measurement.step, []).append(str(measurement.partition))
    return done


class CompletedEvaluations:
    """What is done, kept in metrics-evaluator.jsonl; on rank 0."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: MetricsFile | None = None
        self._done: dict[int, list[str]] = {}

    def open(self) -> None:
        """Cuts a line that a kill has torn; its partition is not done."""
        self._file = MetricsFile(self._path)
        self._done = evaluated(self._path)

    def has(self, step: int, name: str) -> bool:
        return name in self._done.get(step, [])

    def any(self) -> bool:
        return bool(self._done)

    def tell(self, names: Collection[str]) -> None:
        """Says what is not evaluated again, of the partitions that are asked for."""
        steps = [step for step, done in self._done.items() for name in done if name in names]
        if steps:
            logger.info(
                "%s has %d evaluation(s) of steps %d to %d, which are not made again, whatever metrics and data the "
                "configuration now asks for; move the file away to evaluate anew",
                self._path,
                len(steps),
                min(steps),
                max(steps),
            )

    def set(self, measurement: Measurement) -> None:
        """Raises UserError where the line can't be written: without it the partition would be evaluated again."""
        assert self._file is not None
        assert measurement.partition is not None
        try:
            self._file.append(measurement)
        except OSError as error:
            raise UserError(f"{self._path}: can't be written: {error.strerror}; make room, and start again") from error
        self._done.setdefault(measurement.step, []).append(measurement.partition)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
