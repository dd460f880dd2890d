"""How a program of this project ends: a user's mistake is one message and status 2, on one rank or on many."""

import argparse
import contextlib
import datetime
import sys
from collections.abc import Callable
from typing import NoReturn

from common.device import rank_from_env, world_size_from_env
from core.config.base_config import UserError

USER_ERROR_STATUS = 2

# Bounds how long the other ranks wait for rank 0's message, in seconds.
_PATIENCE_IN_S = 20.0


class ArgumentParser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are UserErrors, so that under torchrun one rank alone prints them."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.format_usage()}{self.prog}: {message}")


def run(main: Callable[[], int]) -> NoReturn:
    """Runs `main` and exits with its status; a UserError is printed by rank 0, and every rank exits with 2.

    torchrun ends the other workers as soon as one has failed, so the others wait (bounded) until rank 0 has printed.
    An unexpected exception keeps its traceback.
    """
    try:
        status = main()
    except UserError as error:
        if rank_from_env() == 0:
            sys.stderr.write(f"error: {error}\n")
            sys.stderr.flush()
        if world_size_from_env() > 1:
            _leave_together()
        status = USER_ERROR_STATUS
    sys.exit(status)


def _leave_together() -> None:
    """Returns once rank 0 has printed and every rank knows it, or when patience ends."""
    import torch.distributed as dist

    patience = datetime.timedelta(seconds=_PATIENCE_IN_S)
    # A rank that died or a store that is gone must not turn one clear message into a traceback.
    with contextlib.suppress(Exception):
        store, rank, world_size = next(dist.rendezvous("env://", timeout=patience))
        if rank == 0:
            store.set("user_error/printed", "yes")
        store.wait(["user_error/printed"], patience)
        store.set(f"user_error/seen/{rank}", "yes")
        if rank == 0:  # may host the store: it leaves last
            store.wait([f"user_error/seen/{other}" for other in range(world_size)], patience)
