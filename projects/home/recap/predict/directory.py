"""Owns the directory of predictions: refuses one with other content, and keeps a second process out.

manifest.json              what the predictions are computed from, and their results
predictions/part-*.parquet  a file for each unit
top_k/part-*.parquet       the best rows, with --top_k
.unfinished/               what a restart needs; removed at the end
"""

import contextlib
import fcntl
import itertools
import json
import os
import shutil
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files.atomic_directory import target_of
from common.files.durable import replace_file
from core.evaluation.poller import Poller
from projects.home.recap.predict import manifest

_PREDICTIONS, _TOP_K, _UNFINISHED = "predictions", "top_k", ".unfinished"

_MODIFIED = "modified.json"

# NFS remembers for half a minute that a file does not exist.
_PATIENCE_IN_S = 40

# What a new disk has, and what a process leaves that is killed before it has written the manifest.
_NOT_CONTENT = ("lost+found", f".{manifest.NAME}.", _UNFINISHED)


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

    def begin(self, sources: Mapping[str, Mapping[str, Any]], modified: Mapping[str, int]) -> bool:
        """Create the directory, or check that it holds predictions from the same sources. Called on rank 0.

        Args:
          sources: what predictions are computed from: JSON values by section and key.
          modified: time of the last modification of each file of the input. Two contents of a file can have the same
            footer.

        Returns:
          True if the predictions in it are complete.

        Raises:
          UserError: it cannot be written, holds other predictions or something else, or another process writes to it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock()
            found = manifest.read_manifest(self.path)
            if found is None:
                self._check_empty()
            elif not found["complete"] and not self._has_results():
                found = None
            else:
                manifest.check_same_sources(self.path, found, sources)
            for path in self.path.glob(f".{manifest.NAME}.*"):
                path.unlink(missing_ok=True)
            if found is not None and found["complete"]:
                self._check_files(found["files"])
                self._remove_unfinished()
                return True
            if found is None:
                self._remove_unfinished()
            for directory in (self.unfinished, self.predictions):
                directory.mkdir(exist_ok=True)
            for path in itertools.chain(self.predictions.glob(".part-*"), self.unfinished.glob(".*")):
                path.unlink(missing_ok=True)
            times = self.unfinished / _MODIFIED
            if found is None:
                replace_file(times, json.dumps(modified))
                manifest.write_manifest(self.path, sources, {})
            else:
                self._check_unmodified(json.loads(times.read_text()), modified)
        except OSError as error:
            raise self.not_writable(error) from error
        return False

    def close(self) -> None:
        """Unlock the directory."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def check_shared(self, sources: Mapping[str, Mapping[str, Any]]) -> None:
        """Raise UserError if this process does not see the manifest that rank 0 has written."""
        found, wait = manifest.read_manifest(self.path), Poller(_PATIENCE_IN_S)
        while found is None and not wait.is_over:
            wait.sleep(f"what rank 0 wrote in {self.path}")
            found = manifest.read_manifest(self.path)
        if found is None:
            raise UserError(
                f"--out {self.path}: this process (on {socket.gethostname()}, in {Path.cwd()}) does not see what rank "
                "0 wrote there; all processes need the same directory on a shared file system"
            )
        manifest.check_same_sources(self.path, found, sources)

    def complete(self, sources: Mapping[str, Mapping[str, Any]], results: Mapping[str, Any]) -> None:
        """Record the results, and remove what only a restart needs. Called on rank 0.

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
        if names == [_PREDICTIONS] and not any(self.predictions.iterdir()):
            return
        if names:
            raise UserError(
                f"--out {self.path} already exists, is not empty (it contains {min(names)!r}) and has no "
                f"{manifest.NAME} of predictions; choose another directory"
            )

    def _has_results(self) -> bool:
        return any(self.predictions.glob("part-*")) or any(self.unfinished.glob("unit-*"))

    def _check_files(self, number: int) -> None:
        found = sum(1 for _ in self.predictions.glob("part-*.parquet"))
        if found != number:
            raise UserError(
                f"--out {self.path}: {self.predictions} has {found:,} of the {number:,} files that were written. "
                "Remove the directory to predict again, or choose another one"
            )

    def _check_unmodified(self, saved: Mapping[str, int], modified: Mapping[str, int]) -> None:
        if names := [name for name, when in modified.items() if saved.get(name) != when]:
            raise UserError(
                f"--out {self.path} holds predictions that were begun with other inputs: {len(names)} file(s) were "
                f"modified since, such as {names[0]}. Undo this to continue, choose another directory, or remove this "
                "one"
            )

    def _lock(self) -> None:
        """Lock the directory until close() or the end of this process, if its file system can do so.

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
