"""The directory of a run: what belongs to it, who may write in it, and whether a run may go on there."""

import fcntl
import itertools
import json
import logging
import os
import secrets
import shutil
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from common.checkpointing.storage import complete_steps, remove_unfinished
from core.config.base_config import UserError

logger = logging.getLogger(__name__)


# The first line of our config.yaml; a file without it is somebody's own.
_OURS = "# The resolved configuration of the run in this directory.\n"


class RunDirectory:
    """Paths below save_dir."""

    def __init__(self, save_dir: str) -> None:
        self.path = Path(save_dir).expanduser()
        self.checkpoints = self.path / "checkpoints"
        self.metrics = self.path / "metrics.jsonl"
        self.config = self.path / "config.yaml"
        self._wandb = self.path / "wandb.json"
        self._lock_path = self.path / ".lock"
        self._lock: IO[str] | None = None

    def claim(self) -> str:
        """Makes the directory this process's own until release(). Rank 0 calls it.

        Returns:
          what is written in it for as long: seen by every process that shares the directory.

        Raises:
          UserError: it can't be written, another run is training in it, or its config.yaml is not a run's.
        """
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            self._lock = self._lock_path.open("a+")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            holder = f"process {os.getpid()} on {socket.gethostname()}, {secrets.token_hex(4)}\n"
            self._lock.truncate(0)
            self._lock.write(holder)
            self._lock.flush()
        except BlockingIOError:
            raise UserError(
                f"training.save_dir {self.path}: another run is training here ({self._holder().strip()}); wait for it, "
                "stop it, or give this one a save_dir of its own"
            ) from None
        except OSError as error:
            raise self._refused(error) from error
        if self.config.exists() and not self.config.read_text(encoding="utf-8", errors="replace").startswith(_OURS):
            raise UserError(
                f"training.save_dir {self.path}: the config.yaml in it was not written by a run, which would replace "
                "it; move it elsewhere or give the run another save_dir"
            )
        return holder

    def check_shared(self, holder: str) -> None:
        """Raises UserError where this process doesn't see what claim() has written on rank 0."""
        if self._holder() != holder:
            raise UserError(
                f"training.save_dir {self.path}: this process (on {socket.gethostname()}, in {Path.cwd()}) doesn't see "
                "what rank 0 has written there; all processes need the same directory on a shared file system"
            )

    def check_held(self) -> None:
        """Raises UserError where the directory was removed, or taken over by another run, since claim()."""
        assert self._lock is not None
        try:
            held = os.path.samestat(os.fstat(self._lock.fileno()), self._lock_path.stat())
        except FileNotFoundError:
            held = False
        if not held:
            raise UserError(f"training.save_dir {self.path}: the directory was removed while the run was training")

    def begin(self, resolved_config: str, *, continues: bool, overwrite: bool) -> None:
        """Tidies up, and writes config.yaml. Rank 0 calls it, once all that could refuse the run has been checked.

        Args:
          resolved_config: YAML.
          continues: the run goes on from a checkpoint here; else measurements of an earlier run are set aside.
          overwrite: delete what an earlier run left here; files of others stay.

        Raises:
          UserError: the directory can't be written.
        """
        text = _OURS + resolved_config
        try:
            if overwrite:
                self._remove_earlier_run()
            remove_unfinished(self.checkpoints)
            if not continues:
                _set_aside(self.metrics)
                # The same run, killed before its first checkpoint, is the same run for a tracking service.
                if not self.config.exists() or self.config.read_text(encoding="utf-8") != text:
                    _set_aside(self._wandb)
            aside = self.config.with_suffix(".yaml.writing")
            aside.write_text(text, encoding="utf-8")
            aside.replace(self.config)
        except OSError as error:
            raise self._refused(error) from error

    def release(self) -> None:
        """Lets other runs have the directory."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _holder(self) -> str:
        try:
            return self._lock_path.read_text()
        except OSError:
            return ""

    def _refused(self, error: OSError) -> UserError:
        return UserError(
            f"training.save_dir {self.path}: can't be written: {error.strerror}: {error.filename or self.path}; choose "
            "a directory that this user may write, with room for checkpoints"
        )

    def _remove_earlier_run(self) -> None:
        for step in complete_steps(self.checkpoints):
            shutil.rmtree(self.checkpoints / str(step))
        # A run begins with its config.yaml: without one, what else lies here is not known to be a run's.
        if not self.config.exists():
            return
        if self._wandb.exists():
            shutil.rmtree(self.path / "wandb", ignore_errors=True)
        for path in (self.metrics, self.config, self._wandb):
            path.unlink(missing_ok=True)


def _set_aside(path: Path) -> None:
    """Renames a file that is not empty to the first of <path>.1, <path>.2, ... that is free."""
    if path.exists() and path.stat().st_size > 0:
        number = next(n for n in itertools.count(1) if not path.with_name(f"{path.name}.{n}").exists())
        path.rename(path.with_name(f"{path.name}.{number}"))
        logger.info("%s of an earlier run is now %s.%d", path, path.name, number)


def check_same_run(save_dir: Path, saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuses to go on with a run that was another one.

    Args:
      save_dir: of the run.
      saved: what the checkpoint says the run is, nested by configuration keys.
      now: what the configuration says.

    Raises:
      UserError: lists each difference.
    """
    differences = _differences("", saved, now)
    if differences:
        listed = "\n  ".join(differences[:20] + [f"and {len(differences) - 20} more"] * (len(differences) > 20))
        raise UserError(
            f"training.save_dir {save_dir} holds another run:\n  {listed}\n"
            "Undo these changes to continue it, give this run a save_dir of its own, or start anew with "
            "--overwrite_save_dir (which deletes the run there)."
        )


def _differences(path: str, saved: Any, now: Any) -> list[str]:
    if isinstance(saved, Mapping) and isinstance(now, Mapping):
        found = []
        # An option that has come since the run began, and is off, is as it was.
        for key in [*saved, *(key for key in now if key not in saved and now[key])]:
            name = f"[{key}]" if "." in key else f".{key}"
            found += _differences(f"{path}{name}".removeprefix("."), saved.get(key), now.get(key))
        return found
    if saved == now:
        return []
    if saved is None and isinstance(now, Mapping):
        return [f"{path}: not in the run"]
    if now is None and isinstance(saved, Mapping):
        return [f"{path}: in the run, not any more"]
    return [f"{path}: {json.dumps(saved)} in the run, {json.dumps(now)} now"]
