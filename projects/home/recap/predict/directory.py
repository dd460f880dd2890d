"""Owns the directory of predictions: refuses one that is not ours, and keeps a second process out.

manifest.json              what the predictions are made from, and what was made
predictions/part-*.parquet  a file for each unit
top_k/part-*.parquet       the best rows, with --top_k
.unfinished/               what a restart needs; removed at the end
"""

import contextlib
import fcntl
import os
import shutil
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files.atomic_directory import target_of
from common.files.durable import sync_directory
from projects.home.recap.predict import manifest

_PREDICTIONS, _TOP_K, _UNFINISHED = "predictions", "top_k", ".unfinished"

# What a new disk has, and what a process killed while it wrote the manifest leaves.
_NOT_CONTENT = ("lost+found", f".{manifest.NAME}.")


class PredictionDirectory:
    """The directory that `--out` names."""

    def __init__(self, out: Path) -> None:
        """Resolve the path; nothing is created or read yet. Raises UserError if it is not valid UTF-8."""
        self.path = target_of(out)
        self.predictions = self.path / _PREDICTIONS
        """Directory of the files of predictions."""
        self.top_k = self.path / _TOP_K
        """Directory of the files of the best rows."""
        self.unfinished = self.path / _UNFINISHED
        """Directory of what only a restart needs."""
        self._descriptor: int | None = None

    def begin(self, sources: Mapping[str, Mapping[str, Any]]) -> bool:
        """Create the directory, or check that it holds predictions from the same sources. Called on rank 0.

        Returns:
          True if the predictions in it are complete.

        Raises:
          UserError: it cannot be written, is not ours, holds other predictions, or another process is writing to it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            found = manifest.read_manifest(self.path)
            if found is None:
                self._check_empty()
            else:
                manifest.check_same_sources(self.path, found, sources)
            self._lock()
            for path in self.path.glob(f".{manifest.NAME}.*"):
                path.unlink(missing_ok=True)
            if found is not None and found["complete"]:
                self._remove_unfinished()
                return True
            if found is None:
                manifest.write_manifest(self.path, sources, {})
            for directory in (self.predictions, self.unfinished):
                directory.mkdir(exist_ok=True)
            sync_directory(self.path)
        except OSError as error:
            raise self.not_writable(error) from error
        return False

    def check_shared(self, sources: Mapping[str, Mapping[str, Any]]) -> None:
        """Raise UserError if this process does not see the manifest that rank 0 has written."""
        found = manifest.read_manifest(self.path)
        if found is None:
            raise UserError(
                f"--out {self.path}: this process (on {socket.gethostname()}, in {Path.cwd()}) does not see what rank "
                "0 wrote there; all processes need the same directory on a shared file system"
            )
        manifest.check_same_sources(self.path, found, sources)

    def complete(self, sources: Mapping[str, Mapping[str, Any]], results: Mapping[str, Any]) -> None:
        """Record what was made, and remove what only a restart needs. Called on rank 0.

        Raises:
          UserError: the manifest cannot be written.
        """
        try:
            manifest.write_manifest(self.path, sources, results)
        except OSError as error:
            raise self.not_writable(error) from error
        self._remove_unfinished()

    def not_writable(self, error: OSError) -> UserError:
        """Return the UserError for a failed write."""
        return UserError(
            f"--out {self.path}: cannot write: {error.strerror or error}: {error.filename or self.path}. Make "
            "space, or choose another directory; finished units are kept"
        )

    def _check_empty(self) -> None:
        names = [path.name for path in self.path.iterdir() if not path.name.startswith(_NOT_CONTENT)]
        if names:
            raise UserError(
                f"--out {self.path} already exists, is not empty (it contains {min(names)!r}) and has no "
                f"{manifest.NAME} of predictions; choose another directory"
            )

    def _lock(self) -> None:
        """Lock the directory until this process ends, if its file system can do so.

        Without locks, two processes do the same work, and write files with the same content.
        """
        self._descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"--out {self.path}: another process is writing predictions to this directory. Wait until it ends"
            ) from None
        except OSError:
            pass

    def _remove_unfinished(self) -> None:
        with contextlib.suppress(OSError):
            shutil.rmtree(self.unfinished)
