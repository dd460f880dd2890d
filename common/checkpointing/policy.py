"""Which checkpoints are made, which one a run continues from, and which are deleted."""

import logging
import shutil
from pathlib import Path

from common.checkpointing.storage import (
    CheckpointError,
    DamagedCheckpointError,
    NoCheckpointError,
    complete_steps,
    verify,
)

logger = logging.getLogger(__name__)


class CheckpointPolicy:
    """Saves every n steps and at the end; keeps the newest few, and some for good."""

    def __init__(self, root: Path, every_n: int, max_to_keep: int | None, keep_every_n: int | None = None) -> None:
        """Args:
        root: directory of the run's checkpoints.
        every_n: steps between checkpoints.
        max_to_keep: older ones beyond this are deleted (>= 2); None keeps all.
        keep_every_n: those after every so many steps are not deleted; None: no exception.
        """
        self.root = root
        self._every_n = every_n
        self._max_to_keep = max_to_keep
        self._keep_every_n = keep_every_n

    def is_due(self, step: int) -> bool:
        """Whether to save after `step`, whatever else happens there."""
        return step % self._every_n == 0

    def latest(self) -> Path | None:
        """The newest complete checkpoint, found by looking."""
        return next(reversed(self.complete()), None)

    def complete(self) -> list[Path]:
        """All complete checkpoints, the newest last, found by looking."""
        return [self.root / str(step) for step in complete_steps(self.root)]

    def newest_undamaged(self) -> Path | None:
        """What a run continues from: the newest complete checkpoint whose files are all as its manifest says.

        A damaged one is an error in the log. It stays, until the run comes to its step again.

        Raises:
          CheckpointError: all of them are damaged.
        """
        damaged = []
        for step in reversed(complete_steps(self.root)):
            path = self.root / str(step)
            try:
                verify(path)
            except NoCheckpointError:
                continue
            except DamagedCheckpointError as error:
                logger.error("%s", error)
                damaged.append(str(step))
            else:
                return path
        if damaged:
            raise CheckpointError(
                f"{self.root}: all checkpoints are damaged ({', '.join(damaged)}); put back a copy of one, or give "
                "--overwrite_save_dir to start anew, which deletes them"
            )
        return None

    def rotate(self) -> None:
        """Deletes what is too old. Called by one rank, after a newer checkpoint is complete; never fails."""
        if self._max_to_keep is None:
            return
        for step in complete_steps(self.root)[: -self._max_to_keep]:
            if self._keep_every_n is not None and step % self._keep_every_n == 0:
                continue
            path = self.root / str(step)
            try:
                # Renamed first, so that a half-deleted checkpoint is never taken for a complete one.
                doomed = path.rename(self.root / f".writing-{step}-deleting")
                shutil.rmtree(doomed)
            except OSError as error:
                logger.warning("old checkpoint %s could not be deleted: %s", path, error)
