"""Which checkpoints are made, which one a run continues from, and which are deleted."""

import logging
from collections.abc import Callable, Collection
from pathlib import Path

from common.checkpointing.directory import complete_steps, delete_unless_held, sync_directory
from common.checkpointing.manifest import CheckpointError, DamagedCheckpointError
from common.checkpointing.reader import CheckpointReader, open_on_all_ranks
from common.distributed.world import World
from common.errors import UserError

logger = logging.getLogger(__name__)


class CheckpointRetention:
    """Saves every n steps and at the end; keeps the newest few and the best few, and some for good."""

    def __init__(
        self,
        root: Path,
        every_n: int,
        max_to_keep: int | None,
        keep_every_n: int | None = None,
        best: Callable[[Collection[int]], set[int]] | None = None,
    ) -> None:
        """Args:
        root: directory of the run's checkpoints.
        every_n: steps between checkpoints.
        max_to_keep: older ones beyond this are deleted (>= 2); None keeps all.
        keep_every_n: those after every so many steps are not deleted; None: no exception.
        best: those that it finds are not deleted; None: no exception.
        """
        self.root = root
        self._every_n = every_n
        self._max_to_keep = max_to_keep
        self._keep_every_n = keep_every_n
        self._best = best
        self._damaged: set[int] = set()

    def is_due(self, step: int) -> bool:
        """Whether to save after `step`, whatever else happens there."""
        return step % self._every_n == 0

    def latest(self) -> Path | None:
        """The newest complete checkpoint, found by looking."""
        return next(reversed(self.complete()), None)

    def complete(self) -> list[Path]:
        """All complete checkpoints, the newest last, found by looking; [] where the directory can't be read."""
        try:
            return [self.root / str(step) for step in complete_steps(self.root)]
        except OSError:
            return []

    def open_newest(self, world: World) -> CheckpointReader | None:
        """What a run continues from: the newest complete checkpoint whose files are all as its manifest says.
        Collective.

        A damaged one is an error in the log. It stays until the run has come beyond its step again.

        Raises:
          CheckpointError: all of them are damaged, or the newest is another program version's; on all ranks.
        """
        for step in reversed(world.consensus.broadcast_from_rank_zero(lambda: complete_steps(self.root))):
            try:
                return open_on_all_ranks(self.root / str(step), world)
            except DamagedCheckpointError as error:
                logger.error("%s", error)
                self._damaged.add(step)
        if self._damaged:
            listed = ", ".join(map(str, sorted(self._damaged, reverse=True)))
            raise CheckpointError(
                f"{self.root}: all checkpoints are damaged ({listed}); put back a copy of one, or give "
                "--overwrite_save_dir to start anew, which deletes them"
            )
        return None

    def rotate(self, saved: int) -> None:
        """Deletes what is too old. Called by one rank; never fails.

        saved: step of the newest checkpoint, which is complete. Later ones are damaged and will be made anew.
        """
        self._damaged.discard(saved)
        if self._max_to_keep is None:
            return
        try:
            sync_directory(self.root)  # what an earlier process has renamed last may not be durable
            steps = [step for step in complete_steps(self.root) if step <= saved]
            whole = [step for step in steps if step not in self._damaged]
            kept = set(whole[-self._max_to_keep :])
            if self._best is not None:
                kept |= self._best(whole)
        except (OSError, UserError) as error:
            logger.warning("old checkpoints were not deleted: %s", error)
            return
        if saved not in kept:  # it was removed meanwhile
            return
        for step in steps:
            if step in kept or (self._keep_every_n is not None and step % self._keep_every_n == 0):
                continue
            path = self.root / str(step)
            try:
                if not delete_unless_held(path):
                    logger.info("%s is being read, and stays until a later checkpoint is saved", path)
            except OSError as error:
                logger.warning("old checkpoint %s could not be deleted: %s", path, error)
