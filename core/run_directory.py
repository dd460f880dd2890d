"""The directory of a run: what belongs to it, who may write in it, and whether a run may go on there."""

import fcntl
import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from common.checkpointing.storage import remove_unfinished
from core.config.base_config import UserError

logger = logging.getLogger(__name__)


class RunDirectory:
    """Paths below save_dir."""

    def __init__(self, save_dir: str) -> None:
        self.path = Path(save_dir).expanduser()
        self.checkpoints = self.path / "checkpoints"
        self.metrics = self.path / "metrics.jsonl"
        self.config = self.path / "config.yaml"
        self._lock: IO[str] | None = None

    def claim(self, resolved_config: str, *, overwrite: bool) -> None:
        """Makes the directory this process's own until release(), and writes config.yaml. Rank 0 calls it.

        Args:
          resolved_config: YAML.
          overwrite: delete what an earlier run left here; files of others stay.

        Raises:
          UserError: it can't be written, or another run is training in it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / ".lock").open("w")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if overwrite:
                self._remove_earlier_run()
            remove_unfinished(self.checkpoints)
            aside = self.config.with_suffix(".yaml.writing")
            aside.write_text(resolved_config, encoding="utf-8")
            aside.replace(self.config)
        except BlockingIOError:
            raise UserError(
                f"training.save_dir {self.path}: another run is training here; wait for it, stop it, or give this "
                "one a save_dir of its own"
            ) from None
        except OSError as error:
            raise UserError(f"training.save_dir {self.path}: can't be written: {error}") from error

    def release(self) -> None:
        """Lets other runs have the directory."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _remove_earlier_run(self) -> None:
        for path in (self.checkpoints, self.path / "wandb"):
            if path.exists():
                shutil.rmtree(path)
        for path in (self.metrics, self.config, self.path / "wandb.json"):
            path.unlink(missing_ok=True)


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
        for key in [*saved, *(key for key in now if key not in saved)]:
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
