"""The directory of a run: what belongs to it, who may write in it, and whether a run may go on there."""

import itertools
import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.checkpointing.directory import complete_steps, delete_checkpoint, remove_unfinished
from common.errors import UserError
from core.run.claim import ClaimedDirectory

logger = logging.getLogger(__name__)


# The first line of our config.yaml; a file without it is somebody's own.
_OURS = "# The resolved configuration of the run in this directory.\n"


class FollowerDirectory(ClaimedDirectory):
    """What the evaluator of a run has in its save_dir: a lock and files of its own."""

    def __init__(self, save_dir: str) -> None:
        super().__init__(save_dir, ".lock-evaluator")
        self.metrics = self.path / "metrics-evaluator.jsonl"
        self.wandb = self.path / "wandb-evaluator.json"

    @property
    def is_there(self) -> bool:
        """Whether a run has made it, or a file is in its place, which claim() refuses."""
        return self.checkpoints.is_dir() or self.path.is_file()

    def claim(self) -> str:
        """Makes evaluating here this process's own until release(). Rank 0 calls it, when the directory is there.

        Returns:
          what is written in it for as long: seen by every process that shares the directory.

        Raises:
          UserError: it can't be written, or another evaluator is at work in it.
        """
        try:
            holder = self.lock()
        except OSError as error:
            raise self.refused(error) from error
        if holder is None:
            raise UserError(
                f"training.save_dir {self.path}: another evaluator is at work here, or a run is just starting anew "
                f"({self.holder}); one evaluates every checkpoint, so wait for it or stop it"
            )
        return holder


class RunDirectory(ClaimedDirectory):
    """Paths below save_dir."""

    def __init__(self, save_dir: str) -> None:
        super().__init__(save_dir, ".lock")
        self.metrics = self.path / "metrics.jsonl"
        self.config = self.path / "config.yaml"
        self._wandb = self.path / "wandb.json"
        self._evaluator = FollowerDirectory(save_dir)

    def claim(self) -> str:
        """Makes the directory this process's own until release(). Rank 0 calls it.

        Returns:
          what is written in it for as long: seen by every process that shares the directory.

        Raises:
          UserError: it can't be written, another run is training in it, or its config.yaml is not a run's.
        """
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            holder = self.lock()
        except OSError as error:
            raise self.refused(error) from error
        if holder is None:
            raise UserError(
                f"training.save_dir {self.path}: another run is training here ({self.holder}); wait for it, "
                "stop it, or give this one a save_dir of its own"
            )
        if self.config.exists() and not self.config.read_text(encoding="utf-8", errors="replace").startswith(_OURS):
            raise UserError(
                f"training.save_dir {self.path}: the config.yaml in it was not written by a run, which would replace "
                "it; move it elsewhere or give the run another save_dir"
            )
        return holder

    def begin(self, resolved_config: str, *, continues: bool, overwrite: bool) -> None:
        """Tidies up, and writes config.yaml. Rank 0 calls it, once all that could refuse the run has been checked.

        Args:
          resolved_config: YAML.
          continues: the run goes on from a checkpoint here; else measurements of an earlier run are set aside, and
            so are those of its evaluator.
          overwrite: delete what an earlier run left here; files of others stay.

        Raises:
          UserError: the directory can't be written, or an evaluator of the earlier run is at work in it.
        """
        text = _OURS + resolved_config
        evaluator = self._evaluator
        try:
            if overwrite or (not continues and _has_content(evaluator.metrics)):
                self._keep_evaluator_out()
            if overwrite:
                self._remove_earlier_run()
            remove_unfinished(self.checkpoints)
            if not continues:
                _set_aside(self.metrics)
                if _has_content(evaluator.metrics):
                    _set_aside(evaluator.metrics)
                    _set_aside(evaluator.wandb)
                # The same run, killed before its first checkpoint, is the same run for a tracking service.
                if not self.config.exists() or self.config.read_text(encoding="utf-8") != text:
                    _set_aside(self._wandb)
            aside = self.config.with_suffix(".yaml.writing")
            aside.write_text(text, encoding="utf-8")
            aside.replace(self.config)
        except OSError as error:
            raise self.refused(error) from error
        finally:
            evaluator.release()

    def _keep_evaluator_out(self) -> None:
        """Holds the evaluator's lock, so that none takes a checkpoint of the earlier run for one of this."""
        if self._evaluator.lock() is None:
            raise UserError(
                f"training.save_dir {self.path}: an evaluator of the earlier run is at work here "
                f"({self._evaluator.holder}); stop it, and start it again when this run has begun"
            )

    def _remove_earlier_run(self) -> None:
        for step in complete_steps(self.checkpoints):
            delete_checkpoint(self.checkpoints / str(step))
        # A run begins with its config.yaml: without one, what else lies here is not known to be a run's.
        if not self.config.exists():
            return
        evaluator = self._evaluator
        if self._wandb.exists() or evaluator.wandb.exists():
            shutil.rmtree(self.path / "wandb", ignore_errors=True)
        for path in (self.metrics, self.config, self._wandb, evaluator.metrics, evaluator.wandb):
            path.unlink(missing_ok=True)


def _has_content(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0


def _set_aside(path: Path) -> None:
    """Renames a file that is not empty to the first of <path>.1, <path>.2, ... that is free."""
    if _has_content(path):
        number = next(n for n in itertools.count(1) if not path.with_name(f"{path.name}.{n}").exists())
        path.rename(path.with_name(f"{path.name}.{number}"))
        logger.info("%s of an earlier run is now %s.%d", path, path.name, number)


CONTINUE = (
    "Undo these changes to continue it, give this run a save_dir of its own, or start anew with --overwrite_save_dir "
    "(which deletes the run there)."
)
EVALUATE = "Evaluate it with the configuration that it was trained with."


def check_same_run(
    save_dir: Path,
    saved: Mapping[str, Any],
    now: Mapping[str, Any],
    advice: str = CONTINUE,
    hints: Mapping[str, str] | None = None,
) -> None:
    """Refuses to go on with a run that was another one.

    Args:
      save_dir: of the run.
      saved: what the checkpoint says the run is, nested by configuration keys.
      now: what the configuration says.
      advice: what to do.
      hints: what to do about a difference, by its path.

    Raises:
      UserError: lists each difference.
    """
    differences = _differences("", saved, now)
    if differences:
        for path, hint in (hints or {}).items():
            differences = [f"{line}; {hint}" if line.startswith(f"{path}: ") else line for line in differences]
        listed = "\n  ".join(differences[:20] + [f"and {len(differences) - 20} more"] * (len(differences) > 20))
        raise UserError(f"training.save_dir {save_dir} holds another run:\n  {listed}\n{advice}")


def _differences(path: str, saved: Any, now: Any) -> list[str]:
    if isinstance(saved, Mapping) and isinstance(now, Mapping):
        found = []
        # An option that has come since the run began, and is off, is as it was.
        for key in [*saved, *(key for key in now if key not in saved and now[key])]:
            name = f"[{key}]" if "." in key else f".{key}"
            found += _differences(f"{path}{name}".removeprefix("."), saved.get(key), now.get(key))
        return found
    if isinstance(saved, list) and isinstance(now, list) and any(isinstance(item, Mapping) for item in [*saved, *now]):
        items = enumerate(itertools.zip_longest(saved, now))
        return [line for index, pair in items for line in _differences(f"{path}[{index}]", *pair)]
    if saved == now:
        return []
    if saved is None and isinstance(now, Mapping):
        return [f"{path}: not in the run"]
    if now is None and isinstance(saved, Mapping):
        return [f"{path}: in the run, not any more"]
    return [f"{path}: {json.dumps(saved)} in the run, {json.dumps(now)} now"]
