"""The file `metrics.jsonl`: the sink that writes it, and reading it back."""

import json
import math
import os
from pathlib import Path
from types import NoneType
from typing import Any

from common.measurement import Measurement
from core.config.base_config import UserError


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
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except OSError as error:
        raise UserError(f"{path}: can't be read: {error.strerror}; mend it, or move it away") from error
    for number, line in enumerate(lines, start=1):
        end += len(line)
        if not line.endswith(b"\n"):  # torn: a process was killed while it wrote
            break
        try:
            found.append((end, _parse(line)))
        except (ValueError, TypeError) as error:
            raise UserError(
                f"{path}, line {number}: not a measurement ({error}). The file was left as it is. "
                "Mend or remove that line, or move the file away."
            ) from error
    return found


def _parse(line: bytes) -> Measurement:
    fields: Any = json.loads(line)
    types: dict[str, Any] = {"step": int, "mode": str, "partition": (str, NoneType), "metrics": dict, "timing": dict}
    if not isinstance(fields, dict) or not all(isinstance(fields.get(key), kind) for key, kind in types.items()):
        raise TypeError("expected a JSON object with step, mode, partition, metrics and timing")
    return Measurement(**fields)


def _finite(value: float | int | bool | None) -> float | int | bool | None:
    """JSON has neither NaN nor infinity."""
    return value if value is None or math.isfinite(value) else None
