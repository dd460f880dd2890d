"""Reports a lost rank, with what this rank was doing and the checkpoint that a restart continues from."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from common.checkpointing.directory import complete_steps
from common.distributed.communication import communication_error
from common.distributed.world import World
from common.errors import LostRankError
from common.process.rerun import SAME_COMMAND, capitalized


@contextlib.contextmanager
def report_lost_rank(
    world: World, situation: Callable[[], str], checkpoints: Path | None, how_to_continue: str = SAME_COMMAND
) -> Iterator[None]:
    """Turn torch's errors about a lost rank into a LostRankError, with the original error as its cause.

    Can be nested: the inner one describes the situation.

    Args:
      world: rank of this process, world size and device.
      situation: describes what this rank is doing.
      checkpoints: directory of the checkpoints from which a restart continues; None if it needs none.
      how_to_continue: advice for the user.
    """
    try:
        yield
    except LostRankError:
        raise
    except Exception as error:
        if world.size == 1 or (found := communication_error(error)) is None:
            raise
        newest = "" if checkpoints is None else f"Newest complete checkpoint: {_newest(checkpoints)}. "
        raise LostRankError(
            f"rank {world.rank}: another rank died or does not respond; see its output for the reason. This rank: "
            f"{situation()}: {found}. {newest}{capitalized(how_to_continue)}, or let torchrun restart it with "
            "--max-restarts"
        ) from error


def _newest(checkpoints: Path) -> str:
    steps = complete_steps(checkpoints)
    return str(checkpoints / str(steps[-1])) if steps else "none"
