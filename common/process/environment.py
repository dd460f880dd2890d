"""Reads the environment variables that torchrun sets: this process's rank and the number of processes."""

import os

from common.errors import UserError


def rank_from_env() -> int:
    """Return the rank that torchrun gave this process, or 0 without torchrun.

    Raises:
      UserError: RANK is not a number below WORLD_SIZE.
    """
    rank, size = _number("RANK", 0), world_size_from_env()
    if rank >= size:
        given = f"WORLD_SIZE={size}" if "WORLD_SIZE" in os.environ else "no WORLD_SIZE"
        raise UserError(f"the environment sets RANK={rank} but {given}; start with torchrun, or unset RANK")
    return rank


def world_size_from_env() -> int:
    """Return the number of processes that torchrun started on all machines, or 1 without torchrun.

    Raises:
      UserError: WORLD_SIZE is not a number.
    """
    return _number("WORLD_SIZE", 1)


def local_world_size_from_env() -> int:
    """Return the number of processes that torchrun started on this machine, or 1 without torchrun.

    Raises:
      UserError: LOCAL_WORLD_SIZE is not a number.
    """
    return _number("LOCAL_WORLD_SIZE", 1)


def _number(name: str, default: int) -> int:
    text = os.environ.get(name)
    if text is None:
        return default
    if not text.isdecimal():
        raise UserError(
            f"the environment sets {name}={text!r}, which is not a number; start with torchrun, or unset it"
        )
    return int(text)
