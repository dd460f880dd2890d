"""Remembers which points of a run W&B has received, across restarts and kills.

A stream is the measurements of one mode and partition, such as `train` or `evaluate/validation`.
"""

import json
import logging
import secrets
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from common.files.durable import is_blank, replace_file
from common.tracking.measurement import Measurement

logger = logging.getLogger(__name__)

STEP_KEY = "trainer/global_step"
TRAIN = "train"

# W&B names the directory of an offline session offline-run-<time>-<run id>.
_SESSIONS = "offline-run-*-{run_id}"

_READ_TIMEOUT_IN_S = 120.0


def stream_of(measurement: Measurement) -> str:
    """Return the stream of a measurement."""
    return "/".join(part for part in (measurement.mode, measurement.partition) if part is not None)


class SentPoints:
    """The id of the W&B run, and the points that its sessions contain.

    The file in the run directory holds both. Its points are those of sessions that ended well, or were online. A killed
    offline session has recorded further points in its own file, which read_killed_sessions() reads.
    """

    def __init__(self, path: Path, run_id: str | None) -> None:
        """Read the file, or create it.

        Args:
          path: the file.
          run_id: id of the run if there is no file; None for a new id.

        Raises:
          ValueError: the file is damaged.
          OSError: the file cannot be read or written.
        """
        self._path = path
        self._last_step: dict[str, int] = {}  # training measures its steps in order
        self._steps: dict[str, set[int]] = {}  # a follower may evaluate its steps in any order
        self._read_sessions: set[str] = set()
        if path.exists() and not is_blank(content := path.read_bytes()):  # a power failure can leave a blank file
            try:
                self._parse(json.loads(content))
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                raise ValueError(f"{path} is damaged. Remove it to start a new W&B run. ({error!r})") from error
        else:
            self.run_id = run_id or secrets.token_hex(4)
            self.save()

    def contains(self, stream: str, step: int) -> bool:
        """Return whether W&B has received the point of a step."""
        return step <= self._last_step.get(stream, -1) or step in self._steps.get(stream, ())

    def add(self, measurement: Measurement) -> None:
        """Record in memory that a point was sent. save() writes it to the file."""
        stream = stream_of(measurement)
        if measurement.mode == TRAIN:
            self._last_step[stream] = measurement.step
        else:
            self._steps.setdefault(stream, set()).add(measurement.step)

    def read_killed_sessions(self, directory: Path) -> None:
        """Add the points in the files of offline sessions that were killed before their points were saved here.

        Args:
          directory: directory of W&B in the run directory.
        """
        for session in sorted(directory.glob(_SESSIONS.format(run_id=self.run_id))):
            if session.name in self._read_sessions:
                continue
            for key, step in _recorded_keys(session / f"run-{self.run_id}.wandb"):
                mode, name, *_ = key.split("/")
                if mode == TRAIN:
                    self._last_step[TRAIN] = max(step, self._last_step.get(TRAIN, step))
                else:
                    self._steps.setdefault(f"{mode}/{name}", set()).add(step)
            self._read_sessions.add(session.name)

    def end_session(self, directory: Path) -> None:
        """Record that all points of the offline session in `directory` are saved here."""
        self._read_sessions.add(directory.name)

    def save(self) -> None:
        """Write the file. Raises OSError."""
        content = {
            "run_id": self.run_id,
            "sent": self._last_step,
            "sent_steps": {stream: sorted(steps) for stream, steps in self._steps.items()},
            "sessions": sorted(self._read_sessions),
        }
        replace_file(self._path, json.dumps(content) + "\n")

    def _parse(self, content: Mapping[str, Any]) -> None:
        self.run_id = str(content["run_id"])
        self._last_step = {str(stream): int(step) for stream, step in content["sent"].items()}
        # Older versions wrote only the two keys above.
        steps = content.get("sent_steps", {})
        self._steps = {str(stream): {int(step) for step in listed} for stream, listed in steps.items()}
        self._read_sessions = {str(name) for name in content.get("sessions", ())}


def _recorded_keys(file: Path) -> Iterator[tuple[str, int]]:
    """Yield the keys of all points in the file of an offline session, each with its step, up to where a kill cut it."""
    if not file.exists():
        return
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_READ_TIMEOUT_IN_S, check=True)
    except subprocess.SubprocessError as error:
        logger.warning("cannot read %s; W&B may receive its points twice: %s", file, error)
        return
    for line in done.stdout.splitlines():
        record = json.loads(line)
        if record["type"] == "history" and STEP_KEY in (item := record["history"]["item"]):
            step = int(item[STEP_KEY])
            yield from ((key, step) for key in item if key.startswith((f"{TRAIN}/", "evaluate/")))
