"""Decides when to save a checkpoint, which one a run resumes from, and which ones to delete."""

import logging
from collections.abc import Callable, Collection
from pathlib import Path

from common.checkpointing.directory import complete_steps, delete_unless_held
from common.checkpointing.manifest import CheckpointError, DamagedCheckpointError
from common.checkpointing.reader import CheckpointReader, open_on_all_ranks
from common.distributed.world import World
from common.errors import UserError
from common.files.durable import sync_directory

logger = logging.getLogger(__name__)


class CheckpointRetention:
    """Schedules saves and rotates checkpoints: keeps the newest, the best, and every n-th permanently."""

    def __init__(
        self,
        root: Path,
        every_n: int,
        max_to_keep: int | None,
        keep_every_n: int | None = None,
        best: Callable[[Collection[int]], set[int]] | None = None,
        may_write: Callable[[], bool] = lambda: True,
    ) -> None:
        """Initialize without reading the directory.

        Args:
          root: directory of the run's checkpoints.
          every_n: number of steps between checkpoints.
          max_to_keep: number of newest checkpoints to keep (>= 2), or None to keep all.
          keep_every_n: checkpoints of steps that are multiples of this are never deleted; None disables this.
          best: returns the best of the given steps, whose checkpoints are not deleted; None disables this.
          may_write: called before each deletion. Returns False if the checkpoints belong to another run by now.
        """
        self.root = root
        self._every_n = every_n
        self._max_to_keep = max_to_keep
        self._keep_every_n = keep_every_n
        self._best = best
        self.may_write = may_write
        self._damaged: set[int] = set()
        self._find_protected: Callable[[], Collection[int]] = tuple

    def protect(self, steps: Callable[[], Collection[int]]) -> None:
        """Never delete the checkpoints of the steps that `steps` returns at the time of a rotation."""
        self._find_protected = steps

    def is_due(self, step: int) -> bool:
        """Return whether a save is scheduled after `step`."""
        return step % self._every_n == 0

    def latest(self) -> Path | None:
        """Return the newest complete checkpoint, or None. Lists the directory."""
        return next(reversed(self.complete()), None)

    def complete(self) -> list[Path]:
        """Return all complete checkpoints, newest last. Lists the directory; [] if it cannot be read."""
        try:
            return [self.root / str(step) for step in complete_steps(self.root)]
        except OSError:
            return []

    def open_newest(self, world: World) -> CheckpointReader | None:
        """Open the newest complete checkpoint, or return None if there is none. Collective.

        Skips damaged checkpoints, with an error in the log for each. Loading the tensors may find further damage: call
        reject(), and then this method again.

        Raises:
          CheckpointError: on all ranks, if all checkpoints are damaged or an incompatible version of this program wrote
            the newest one.
        """
        for step in reversed(world.consensus.broadcast_from_rank_zero(lambda: complete_steps(self.root))):
            path = self.root / str(step)
            try:
                if step not in self._damaged:
                    return open_on_all_ranks(path, world)
            except DamagedCheckpointError as error:
                self.reject(path, error)
        if self._damaged:
            listed = ", ".join(map(str, sorted(self._damaged, reverse=True)))
            raise CheckpointError(
                f"{self.root}: all checkpoints are damaged ({listed}). Restore one from a copy, or pass "
                "--overwrite_save_dir to start over, which deletes them"
            )
        return None

    def reject(self, path: Path, error: DamagedCheckpointError) -> None:
        """Log that a checkpoint is damaged, and never open it again. It stays until the run passes its step again."""
        logger.error("%s", error)
        self._damaged.add(int(path.name))

    def rotate(self, saved: int) -> None:
        """Delete checkpoints that are too old. Call this on one rank. Never raises.

        Args:
          saved: step of the newest checkpoint, which is complete. Any later ones are damaged and will be overwritten.
        """
        self._damaged.discard(saved)
        if self._max_to_keep is None:
            return
        try:
            sync_directory(self.root)  # the last rename by an earlier process may not be durable yet
            steps = [step for step in complete_steps(self.root) if step <= saved]
            intact = [step for step in steps if step not in self._damaged]
            kept = {*intact[-self._max_to_keep :], *self._find_protected()}
            if self._best is not None:
                kept |= self._best(intact)
        except (OSError, UserError) as error:
            logger.warning("could not delete old checkpoints: %s", error)
            return
        if saved not in kept:  # it was removed by hand
            return
        for step in steps:
            if step in kept or (self._keep_every_n is not None and step % self._keep_every_n == 0):
                continue
            if not self.may_write():
                return
            path = self.root / str(step)
            try:
                if not delete_unless_held(path):
                    logger.info("%s is being read and stays until a later checkpoint is saved", path)
            except OSError as error:
                logger.warning("could not delete the old checkpoint %s: %s", path, error)
