"""Manages the directory of a run: its files, and those of an earlier run."""

import itertools
import logging
import shutil
from collections.abc import Iterable
from pathlib import Path

from common.checkpointing.directory import complete_steps, delete_checkpoint, remove_unfinished
from common.errors import UserError
from common.files.abilities import check_directories, check_files
from common.files.durable import is_blank, replace_file
from common.tracking import run_files
from core.run.claim import ClaimedDirectory, DirectoryLock
from core.run.inputs import delete_inputs, keep_inputs
from core.run.launch import Launch, LaunchRecord, Overwrite

logger = logging.getLogger(__name__)


# The first line of a run's config.yaml. A file without it belongs to the user.
_HEADER = "# The resolved configuration of the run in this directory.\n"


class FollowerDirectory(ClaimedDirectory):
    """The lock and the files of a run's follower in its save_dir."""

    def __init__(self, save_dir: str) -> None:
        super().__init__(save_dir, ".lock-evaluator")
        self.metrics = self.path / run_files.FOLLOWER_METRICS
        self.wandb = self.path / run_files.FOLLOWER_WANDB

    @property
    def exists(self) -> bool:
        """True if a run has created the directory, or if a file is in its place, which claim() refuses."""
        return self.checkpoints.is_dir() or self.path.is_file()

    def claim(self) -> str:
        """Lock the directory for this follower. Called on rank 0 once the directory exists.

        Returns:
          The claim, which every process that shares the directory can read.

        Raises:
          UserError: the directory is not writable, or another follower is running in it.
        """
        try:
            check_files(self.path)
            claim = self.lock()
        except OSError as error:
            raise self.not_writable(error) from error
        if claim is None:
            raise UserError(
                f"training.save_dir {self.path}: another follower is running here, or a run is starting over "
                f"({self.holder}); one follower evaluates every checkpoint, so wait for it or stop it"
            )
        return claim


class RunDirectory(ClaimedDirectory):
    """The lock and the files of a training run in its save_dir."""

    def __init__(self, save_dir: str) -> None:
        super().__init__(save_dir, ".lock")
        self.metrics = self.path / run_files.METRICS
        self.config = self.path / "config.yaml"
        self._wandb = self.path / run_files.WANDB
        self._follower = FollowerDirectory(save_dir)
        self._launches = LaunchRecord(self.path / run_files.LAUNCHES)
        # On another disk, the checkpoints have another file system, and perhaps a second save_dir that links to them.
        if self.checkpoints.is_symlink() or self.checkpoints.is_mount():
            self._locks.append(DirectoryLock(self.checkpoints, ".lock"))

    def claim(self) -> str:
        """Create the directory if needed, and lock it for this run. Called on rank 0.

        Returns:
          The claim, which every process that shares the directory can read.

        Raises:
          UserError: the directory is not writable or its file system cannot do what a run needs, another run is
            training in it, or its config.yaml is not from a run.
        """
        for path in (self.path, self.checkpoints):
            if path.is_symlink() and not path.exists():
                raise UserError(
                    f"training.save_dir {self.path}: {path} is a link to {path.readlink()}, which does not exist; "
                    "mount its disk, create the directory, or remove the link"
                )
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            missing = check_files(self.path)
            claim = self.lock()
        except OSError as error:
            raise self.not_writable(error) from error
        if claim is None:
            raise UserError(
                f"training.save_dir {self.path}: another run is training here ({self.holder}); wait for it, stop it, "
                "or use a different save_dir for this run"
            )
        try:
            is_replaceable = not self.config.exists() or _is_from_a_run(self.config)
        except OSError as error:
            raise UserError(f"training.save_dir {self.path}: cannot read {self.config}: {error.strerror}") from error
        if not is_replaceable:
            raise UserError(
                f"training.save_dir {self.path}: the config.yaml in it was not written by a run, and this run would "
                "replace it; move it elsewhere or use a different save_dir"
            )
        self._check_abilities(missing)
        return claim

    def check_shared(self, claim: str) -> None:
        """Raise UserError if this process does not see what claim() wrote on rank 0, or cannot write checkpoints."""
        super().check_shared(claim)
        try:
            check_files(self.checkpoints)
        except OSError as error:
            raise self.not_writable(error) from error

    def check_not_deleted(self, checkpoint: Path, key_path: str) -> None:
        """Raise UserError if a run that starts over here would delete the checkpoint that it starts from.

        A restart before its own first checkpoint would find neither.
        """
        if checkpoint.resolve().is_relative_to(self.checkpoints.resolve()):
            raise UserError(
                f"{key_path}: {checkpoint} is in the save_dir of this run, which starts over and would delete it; copy "
                "the checkpoint elsewhere, or use a different save_dir for this run"
            )

    def how_to_start_over_again(self, launch: Launch) -> str | None:
        """Return a clause for a message if this launch has already deleted an earlier run here. Called on rank 0.

        Raises:
          UserError: that is unknown, because its record is damaged.
        """
        return self._launches.how_to_start_over_again(launch)

    def begin(self, resolved_config: str, is_resumed: bool, overwrite: Overwrite) -> None:
        """Clean up, and write config.yaml. Called on rank 0, after all checks that could reject the run.

        Args:
          resolved_config: YAML.
          is_resumed: the run continues from a checkpoint. Otherwise, the metrics files of an earlier run and its
            follower are renamed.
          overwrite: deletes the files of an earlier run if it is due. Other files stay.

        Raises:
          UserError: the directory is not writable, or a follower of the earlier run is running in it.
        """
        text = _HEADER + resolved_config
        follower = self._follower
        try:
            if overwrite.is_due or (not is_resumed and _has_content(follower.metrics)):
                self._keep_follower_out()
            if overwrite.is_due:
                self._delete_earlier_run()
            if overwrite.launch is not None:
                self._launches.add(overwrite.launch)
            remove_unfinished(self.checkpoints)
            if not is_resumed:
                _set_aside(self.metrics)
                if _has_content(follower.metrics):
                    _set_aside(follower.metrics)
                    _set_aside(follower.wandb)
                # A run that was killed before its first checkpoint stays the same run for a tracking service.
                if not self.config.exists() or self.config.read_text(encoding="utf-8", errors="replace") != text:
                    _set_aside(self._wandb)
            replace_file(self.config, text)
        except OSError as error:
            raise self.not_writable(error) from error
        finally:
            follower.release()

    def keep_inputs(self, paths: Iterable[str]) -> dict[str, str]:
        """Copy the files that the model is built from to the directory (core/run/inputs.py). Called on rank 0.

        Returns:
          The name of each copy, by the path of the original.

        Raises:
          UserError: a file cannot be read, or the directory is not writable.
        """
        try:
            return keep_inputs(self.path, paths)
        except OSError as error:
            raise self.not_writable(error) from error

    def _check_abilities(self, missing: list[str]) -> None:
        """Check that checkpoints can be written, and log what save_dir (`missing`) or checkpoints in it cannot do."""
        try:
            missing = list(dict.fromkeys([*missing, *check_files(self.checkpoints)]))
            check_directories(self.checkpoints)
        except OSError as error:
            raise self.not_writable(error) from error
        if missing:
            logger.warning(
                "training.save_dir %s: its file system cannot %s. After a power failure, the newest checkpoints may be "
                "damaged or missing, and the run resumes from an older one",
                self.path,
                " or ".join(missing),
            )

    def _keep_follower_out(self) -> None:
        """Hold the follower's lock, so that no follower mistakes a checkpoint of the earlier run for this run's."""
        if self._follower.lock() is None:
            raise UserError(
                f"training.save_dir {self.path}: a follower of the earlier run is running here "
                f"({self._follower.holder}); stop it, and start it again once this run has begun"
            )

    def _delete_earlier_run(self) -> None:
        steps = complete_steps(self.checkpoints)
        for step in steps:
            delete_checkpoint(self.checkpoints / str(step))
        if steps:
            logger.info(
                "starting over: deleted the run in %s (%d checkpoints, up to step %d)", self.path, len(steps), steps[-1]
            )
        # A run writes config.yaml first. Without one, the other files may not belong to a run.
        if not self.config.exists():
            return
        delete_inputs(self.path)
        follower = self._follower
        if self._wandb.exists() or follower.wandb.exists():
            shutil.rmtree(self.path / run_files.WANDB_DIRECTORY, ignore_errors=True)
        for path in (self.metrics, self.config, self._wandb, follower.metrics, follower.wandb):
            path.unlink(missing_ok=True)


def _is_from_a_run(config: Path) -> bool:
    """Return whether a run wrote a config.yaml. A power failure can leave it empty."""
    content = config.read_bytes()
    return content.startswith(_HEADER.encode()) or is_blank(content)


def _has_content(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0


def _set_aside(path: Path) -> None:
    """Rename a file with content to the first free name among <path>.1, <path>.2, ..."""
    if _has_content(path):
        number = next(n for n in itertools.count(1) if not path.with_name(f"{path.name}.{n}").exists())
        path.rename(path.with_name(f"{path.name}.{number}"))
        logger.info("renamed %s of an earlier run to %s.%d", path, path.name, number)
