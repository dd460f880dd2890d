"""Where measurements go: the interface of a sink, the file `metrics.jsonl`, what the loop logs to.

A sink that fails is one warning and never stops training. What is measured, and when, is the loop's
business; the sink of Weights & Biases is in `common.wandb`.
"""

import functools
import json
import logging
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from common.wandb import WandbConfig, WandbTracker
from core.config.base_config import UserError

logger = logging.getLogger(__name__)


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
    """A sink of measurements. It may raise: it is switched off then."""

    def log(self, measurement: Measurement) -> None:
        """Takes one measurement; must not wait for a network."""

    def finish(self) -> None:
        """Releases what the sink holds, in bounded time. Called once, also after a failed log()."""


class Trackers:
    """The sinks of a run. Only rank 0 has any; without sinks all methods do nothing.

    No exception of a sink leaves this class. Neither KeyboardInterrupt nor SystemExit is held back.
    """

    def __init__(self, sinks: Iterable[Tracker] = ()) -> None:
        named = [(type(sink).__name__, sink) for sink in sinks]
        self._logging = list(named)
        self._unfinished = list(named)
        self.run_id: str | None = None
        """The id that a tracking service knows this run by; belongs into the checkpoint."""

    def add(self, name: str, build: Callable[[], Tracker]) -> None:
        """Adds the sink that `build` returns, called `name` in warnings; without it if building fails.

        Raises UserError where `build` does: a mistake that the user is told before training starts.
        """
        try:
            sink = build()
        except UserError:
            raise
        except Exception as error:
            _warn(name, "could not be set up, training goes on without it", error)
            return
        self._logging.append((name, sink))
        self._unfinished.append((name, sink))
        self.run_id = getattr(sink, "run_id", self.run_id)

    def log(self, measurement: Measurement) -> None:
        """Hands the measurement to each sink; one that fails is switched off with a warning."""
        for name, sink in list(self._logging):
            try:
                sink.log(measurement)
            except Exception as error:
                self._logging.remove((name, sink))
                _warn(name, f"failed at step {measurement.step} and is switched off", error)

    def finish(self) -> None:
        """Finishes each sink, also one that is switched off. A second call does nothing."""
        self._logging.clear()
        while self._unfinished:
            name, sink = self._unfinished.pop()
            try:
                sink.finish()
            except Exception as error:
                _warn(name, "failed to finish", error)


def _warn(name: str, what_happened: str, error: Exception) -> None:
    logger.warning("Tracker %s %s: %s: %s", name, what_happened, type(error).__name__, error)


class MetricsFile:
    """The sink that appends each measurement to `path` as one line of JSON, flushed at once.

    Opening it cuts the lines after `last_step` (None: no limit) and a torn last line, so that a resume goes
    on where its checkpoint is. The directory is made if need be. Raises UserError, and leaves the file as it
    is, if another line is no measurement.
    """

    def __init__(self, path: Path, last_step: int | None = None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            os.truncate(path, _length_to_keep(path, last_step))
        self._file = path.open("a", encoding="utf-8")

    def log(self, measurement: Measurement) -> None:
        line = {
            "step": measurement.step,
            "mode": measurement.mode,
            "partition": measurement.partition,
            "metrics": {name: _finite(value) for name, value in measurement.metrics.items()},
            "timing": {name: _finite(value) for name, value in measurement.timing.items()},
        }
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()

    def finish(self) -> None:
        self._file.close()


def read_metrics(path: Path) -> list[Measurement]:
    """The measurements in a `metrics.jsonl`, in order; [] if there is no file. A torn last line is ignored.

    Raises UserError with file and line where another line is no measurement.
    """
    return [measurement for _, measurement in _scan(path)] if path.exists() else []


def _length_to_keep(path: Path, last_step: int | None) -> int:
    """Bytes before the first line to cut."""
    length = 0
    for end, measurement in _scan(path):
        if last_step is not None and measurement.step > last_step:
            break
        length = end
    return length


def _scan(path: Path) -> list[tuple[int, Measurement]]:
    """Each whole line's end, in bytes from the file's start, and its measurement."""
    found = []
    end = 0
    lines = path.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        end += len(line)
        try:
            if not line.endswith(b"\n"):
                raise ValueError("the line is torn")
            found.append((end, _parse(line)))
        except (ValueError, TypeError) as error:
            if number == len(lines):
                break
            raise UserError(
                f"{path}, line {number}: not a measurement ({error}). Nothing was changed. "
                "Mend or remove that line, or move the file away."
            ) from error
    return found


def _parse(line: bytes) -> Measurement:
    fields: Any = json.loads(line)
    if not isinstance(fields, dict) or not isinstance(fields.get("step"), int):
        raise TypeError("expected a JSON object with step, mode, partition, metrics and timing")
    return Measurement(**fields)


def _finite(value: float | int | bool | None) -> float | int | bool | None:
    """JSON has neither NaN nor infinity."""
    return value if value is None or math.isfinite(value) else None


def build_trackers(
    run_dir: Path,
    config: WandbConfig | None,
    resolved_config: Mapping[str, Any],
    last_step: int | None,
    *,
    group: str | None = None,
    run_id: str | None = None,
    suffix: str = "",
) -> Trackers:
    """The sinks of a run, for rank 0: `run_dir`/metrics.jsonl, and W&B if configured.

    resolved_config: what W&B shows as the run's config; JSON values.
    last_step: the step that the run goes on from, 0 for a new run; None keeps all lines of the metrics file.
    group: W&B group. run_id: the one in the checkpoint.
    suffix: ends the stems of the file names: "-evaluator" for the side-car.

    A sink that can't be set up is one warning. Raises UserError if the metrics file is damaged or the key
    file can't serve.
    """
    trackers = Trackers()
    trackers.add("metrics file", functools.partial(MetricsFile, run_dir / f"metrics{suffix}.jsonl", last_step))
    if config is not None:
        trackers.add(
            "Weights & Biases",
            functools.partial(
                WandbTracker, config, run_dir, resolved_config, group=group, run_id=run_id, suffix=suffix
            ),
        )
    return trackers
