"""What a rank says when another one is gone: at which step, and what the same command continues from."""

import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import torch.distributed as dist

from common.checkpointing.directory import complete_steps
from common.distributed.world import World


class LostRankError(Exception):
    """Another rank has died, or has not answered in time."""


@contextlib.contextmanager
def report_lost_rank(world: World, situation: Callable[[], str], checkpoints: Path) -> Iterator[None]:
    """Within, what torch raises where another rank is gone becomes a LostRankError, which has it as its cause.

    Args:
      world: this process's place.
      situation: what this rank is doing.
      checkpoints: directory of the run's.
    """
    try:
        yield
    except Exception as error:
        if world.size == 1 or (found := _communication_error(error)) is None:
            raise
        steps = complete_steps(checkpoints)
        newest = f"Newest complete checkpoint: {checkpoints / str(steps[-1]) if steps else 'none'}"
        raise LostRankError(
            f"rank {world.rank}: another rank has died or doesn't answer; its output tells why. Here: {situation()}: "
            f"{found}. {newest}; the same command continues, as does torchrun with --max-restarts"
        ) from error


def _communication_error(error: BaseException | None) -> str | None:
    """What torch says of a communication that failed, if that led to the error; its first sentence."""
    while error is not None:
        lines = str(error).splitlines() or [""]
        # gloo's errors have no type of their own; the paths of its sources have its name.
        if isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo/" in lines[0]):
            return re.sub(r"^\[[^\]]*\] ", "", lines[0]).split(". ")[0]
        error = error.__cause__ or error.__context__
    return None
