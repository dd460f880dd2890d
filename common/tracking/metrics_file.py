"""Reads and writes the lines of `metrics.jsonl`. Callers decide what a failure means."""

import contextlib
import json
import logging
import math
import os
from pathlib import Path
from types import NoneType
from typing import Any

from common.errors import UserError
from common.files.durable import sync_directory, sync_file
from common.tracking.measurement import Measurement

logger = logging.getLogger(__name__)


class MetricsFile:
    """Appends each measurement to `path` as one line of JSON, and passes it to the operating system immediately.

    Opening the file removes the lines after `last_step` (None for no limit) and an incomplete last line, so that a
    resume continues from its checkpoint. Missing directories are created.

    Raises:
      UserError: any other line is not a measurement. The file is left unchanged.
    """

    def __init__(self, path: Path, last_step: int | None = None) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            os.truncate(path, _length_to_keep(path, last_step))
        self._descriptor = -1
        self._length = 0
        self._open()

    def append(self, measurement: Measurement) -> None:
        """Write a whole line, or nothing. If the file was moved, removed or truncated, continue with its current state.

        Raises:
          OSError: the line cannot be written.
        """
        line = _line(measurement)
        if not self._is_unchanged():
            self.close()
            self._open()
        try:
            written = 0
            while written < len(line):
                written += os.write(self._descriptor, line[written:])
        except OSError:
            with contextlib.suppress(OSError):  # if this fails, the next append() removes the incomplete line
                os.ftruncate(self._descriptor, self._length)
            raise
        self._length += len(line)

    def sync(self) -> None:
        """Wait until all appended lines would survive a power failure. Any thread may call this.

        Raises:
          OSError: the file or its directory cannot be synchronized.
        """
        sync_file(self.path)
        sync_directory(self.path.parent)

    def close(self) -> None:
        """Close the file. append() opens it again."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _open(self) -> None:
        """Open the file that is at the path now, and remove an incomplete last line."""
        self._descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        content = self.path.read_bytes()
        self._length = content.rfind(b"\n") + 1
        if self._length < len(content):
            os.ftruncate(self._descriptor, self._length)

    def _is_unchanged(self) -> bool:
        """Return True if the open file is still at the path and has the length that this object has written."""
        if self._descriptor < 0:
            return False
        try:
            at_path = self.path.stat()
        except FileNotFoundError:
            at_path = None
        opened = os.fstat(self._descriptor)
        if at_path is None or not os.path.samestat(at_path, opened) or at_path.st_size < self._length:
            logger.warning(
                "%s was removed, replaced or truncated during the run. Continuing with the current file; earlier "
                "measurements may be missing from it.",
                self.path,
            )
            return False
        return at_path.st_size == self._length


def read_metrics(path: Path) -> list[Measurement]:
    """Return the measurements in a `metrics.jsonl`, in order; [] if there is no file. Ignores an incomplete last line.

    Raises:
      UserError: another line is not a measurement. The message names the file and the line.
    """
    return [measurement for _, measurement in _scan(path)] if path.exists() else []


class MetricsTail:
    """Reads a `metrics.jsonl` that another process appends to. Returns each line once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._inode = 0
        self._end = 0
        self._num_lines = 0

    def read(self) -> tuple[list[Measurement], bool]:
        """Return the measurements since the last call.

        Returns:
          The new measurements, and whether the file was truncated or replaced since the last call. If so, the
          measurements are all those in the file.

        Raises:
          UserError: see read_metrics(). The next call then starts with the first line.
        """
        try:
            status = self._path.stat()
        except FileNotFoundError:
            previous_inode, self._inode = self._inode, 0
            return [], previous_inode != 0
        is_replaced = status.st_ino != self._inode or status.st_size < self._end
        if is_replaced:
            self._inode, self._end, self._num_lines = status.st_ino, 0, 0
        try:
            scanned = _scan(self._path, self._end, self._num_lines)
        except UserError:
            self._inode = 0
            raise
        self._num_lines += len(scanned)
        if scanned:
            self._end = scanned[-1][0]
        return [measurement for _, measurement in scanned], is_replaced


def _length_to_keep(path: Path, last_step: int | None) -> int:
    """Return the number of bytes before the first line to remove."""
    length = 0
    for end, measurement in _scan(path):
        if last_step is not None and measurement.step > last_step:
            break
        length = end
    return length


def _scan(path: Path, begin: int = 0, num_lines: int = 0) -> list[tuple[int, Measurement]]:
    """Return the end of each complete line, in bytes from the start of the file, and its measurement.

    Args:
      path: path of the file.
      begin: number of bytes to skip.
      num_lines: number of lines in these bytes.
    """
    scanned = []
    end = begin
    try:
        with path.open("rb") as file:
            file.seek(begin)
            lines = file.read().splitlines(keepends=True)
    except OSError as error:
        raise UserError(f"{path}: cannot read this file: {error.strerror}. Fix it or move it away.") from error
    for number, line in enumerate(lines, start=num_lines + 1):
        end += len(line)
        if not line.endswith(b"\n"):  # incomplete: a process was killed while writing it
            break
        try:
            scanned.append((end, _parse(line)))
        except (ValueError, TypeError) as error:
            raise UserError(
                f"{path}, line {number}: not a measurement ({error}). The file was left unchanged. "
                "Fix or remove this line, or move the file away."
            ) from error
    return scanned


def _line(measurement: Measurement) -> bytes:
    fields = {
        "step": measurement.step,
        "mode": measurement.mode,
        "partition": measurement.partition,
        "metrics": {name: finite_or_none(value) for name, value in measurement.metrics.items()},
        "timing": {name: finite_or_none(value) for name, value in measurement.timing.items()},
    }
    return json.dumps(fields, allow_nan=False).encode() + b"\n"


def _parse(line: bytes) -> Measurement:
    fields: Any = json.loads(line)
    types: dict[str, Any] = {"step": int, "mode": str, "partition": (str, NoneType), "metrics": dict, "timing": dict}
    if not isinstance(fields, dict) or not all(isinstance(fields.get(key), kind) for key, kind in types.items()):
        raise TypeError("expected a JSON object with step, mode, partition, metrics and timing")
    return Measurement(**fields)


def finite_or_none(value: float | int | bool | None) -> float | int | bool | None:
    """Return None for NaN and infinity, which JSON cannot represent."""
    return value if value is None or math.isfinite(value) else None
