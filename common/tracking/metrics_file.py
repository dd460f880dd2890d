"""The file `metrics.jsonl`: writing and reading its lines. What becomes of a failure is the caller's business."""

import contextlib
import json
import logging
import math
import os
from pathlib import Path
from types import NoneType
from typing import Any

from common.errors import UserError
from common.tracking.measurement import Measurement

logger = logging.getLogger(__name__)


class MetricsFile:
    """Appends each measurement to `path` as one line of JSON, handed to the operating system at once.

    Opening it cuts the lines after `last_step` (None: no limit) and a torn last line, so that a resume goes
    on where its checkpoint is. The directory is made if need be. Raises UserError, and leaves the file as it
    is, if another line is no measurement.
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
        """Writes a line, or nothing of it. One that was moved, removed or cut is gone on with as it is now.

        Raises:
          OSError: the line can't be written.
        """
        line = _line(measurement)
        if not self._is_as_left():
            self.close()
            self._open()
        try:
            written = 0
            while written < len(line):
                written += os.write(self._descriptor, line[written:])
        except OSError:
            with contextlib.suppress(OSError):  # else the next append() does
                os.ftruncate(self._descriptor, self._length)
            raise
        self._length += len(line)

    def sync(self) -> None:
        """Returns when all that was appended survives a failure of the power. Any thread may call it.

        Raises:
          OSError: that is not sure.
        """
        for path in (self.path, self.path.parent):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _open(self) -> None:
        """Opens what is under the name, less a torn last line."""
        self._descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        content = self.path.read_bytes()
        self._length = content.rfind(b"\n") + 1
        if self._length < len(content):
            os.ftruncate(self._descriptor, self._length)

    def _is_as_left(self) -> bool:
        if self._descriptor < 0:
            return False
        try:
            found = self.path.stat()
        except FileNotFoundError:
            found = None
        own = os.fstat(self._descriptor)
        if found is None or not os.path.samestat(found, own) or found.st_size < self._length:
            logger.warning(
                "%s was removed, replaced or cut while it was written; going on with what is there now, in which "
                "earlier measurements may be missing",
                self.path,
            )
            return False
        return found.st_size == self._length


def read_metrics(path: Path) -> list[Measurement]:
    """The measurements in a `metrics.jsonl`, in order; [] if there is no file. A torn last line is ignored.

    Raises UserError with file and line where another line is no measurement.
    """
    return [measurement for _, measurement in _scan(path)] if path.exists() else []


class MetricsTail:
    """Reads a `metrics.jsonl` that grows, each line once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._inode = 0
        self._end = 0
        self._num_lines = 0

    def read(self) -> tuple[list[Measurement], bool]:
        """The measurements since the last call, and whether the file was cut or replaced since: then these are all.

        Raises UserError as read_metrics(); the next call then begins with the first line.
        """
        try:
            status = self._path.stat()
        except FileNotFoundError:
            before, self._inode = self._inode, 0
            return [], before != 0
        is_another = status.st_ino != self._inode or status.st_size < self._end
        if is_another:
            self._inode, self._end, self._num_lines = status.st_ino, 0, 0
        try:
            found = _scan(self._path, self._end, self._num_lines)
        except UserError:
            self._inode = 0
            raise
        self._num_lines += len(found)
        if found:
            self._end = found[-1][0]
        return [measurement for _, measurement in found], is_another


def _length_to_keep(path: Path, last_step: int | None) -> int:
    """Bytes before the first line to cut."""
    length = 0
    for end, measurement in _scan(path):
        if last_step is not None and measurement.step > last_step:
            break
        length = end
    return length


def _scan(path: Path, begin: int = 0, num_lines: int = 0) -> list[tuple[int, Measurement]]:
    """Each whole line's end, in bytes from the file's start, and its measurement.

    The first `begin` bytes, which are num_lines lines, are left out.
    """
    found = []
    end = begin
    try:
        with path.open("rb") as file:
            file.seek(begin)
            lines = file.read().splitlines(keepends=True)
    except OSError as error:
        raise UserError(f"{path}: can't be read: {error.strerror}; mend it, or move it away") from error
    for number, line in enumerate(lines, start=num_lines + 1):
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


def _line(measurement: Measurement) -> bytes:
    fields = {
        "step": measurement.step,
        "mode": measurement.mode,
        "partition": measurement.partition,
        "metrics": {name: _finite(value) for name, value in measurement.metrics.items()},
        "timing": {name: _finite(value) for name, value in measurement.timing.items()},
    }
    return json.dumps(fields, allow_nan=False).encode() + b"\n"


def _parse(line: bytes) -> Measurement:
    fields: Any = json.loads(line)
    types: dict[str, Any] = {"step": int, "mode": str, "partition": (str, NoneType), "metrics": dict, "timing": dict}
    if not isinstance(fields, dict) or not all(isinstance(fields.get(key), kind) for key, kind in types.items()):
        raise TypeError("expected a JSON object with step, mode, partition, metrics and timing")
    return Measurement(**fields)


def _finite(value: float | int | bool | None) -> float | int | bool | None:
    """JSON has neither NaN nor infinity."""
    return value if value is None or math.isfinite(value) else None
