"""How a program of this project ends: a user's mistake is one message and status 2, on one rank or on many."""

import argparse
import contextlib
import datetime
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from typing import NoReturn

from common.errors import RankFailedError, UserError
from common.process.environment import rank_from_env, world_size_from_env
from common.process.standard_streams import make_forgiving

USER_ERROR_STATUS = 2

# Bounds how long the other ranks wait for rank 0's message, in seconds.
_PATIENCE_IN_S = 20.0


class ArgumentParser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are UserErrors, so that under torchrun one rank alone prints them."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}\n{self.format_usage().rstrip()}")


def run(main: Callable[[], int], after_interrupt: str = "continues from the newest checkpoint") -> NoReturn:
    """Runs `main` and exits with its status; a UserError is printed by rank 0, and every rank exits with 2.

    torchrun ends the other workers as soon as one has failed, so the others wait (bounded) until rank 0 has printed. A
    rank prints by itself what rank 0 hasn't met (a directory that one machine lacks). An interrupt ends it with 130. An
    unexpected exception keeps its traceback and ends it with 1; so does, with one message, that of another rank.

    Args:
      main: the program; returns its exit status.
      after_interrupt: what the same command does after an interrupt, for the message.
    """
    make_forgiving()
    try:
        status = main()
    except UserError as error:
        rank = rank_from_env()
        if rank == 0:
            _print(f"error: {error}")
        if world_size_from_env() > 1 and not _leave_together() and rank != 0:
            _print(f"error on rank {rank}: {error}")
        status = USER_ERROR_STATUS
    except KeyboardInterrupt:
        if rank_from_env() == 0:
            _print(f"interrupted; the same command {after_interrupt}")
        status = 128 + signal.SIGINT
        _end_at_once(status)
    except RankFailedError as error:
        _print(f"error on rank {rank_from_env()}: {error}")
        status = 1
        _end_at_once(status)
    except Exception:
        traceback.print_exc()
        status = 1
        _end_at_once(status)
    sys.exit(status)


def _end_at_once(status: int) -> None:
    """Ends the process where the interpreter's own end could hang or abort: it waits for communication with ranks that
    may be gone, and a thread within C++ code, such as a save, aborts it."""
    if world_size_from_env() > 1 or any(thread.daemon for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _print(message: str) -> None:
    sys.stderr.write(f"{message}\n")
    sys.stderr.flush()


def _leave_together() -> bool:
    """Returns once rank 0 has printed and every rank knows it, or when patience ends; whether rank 0 has printed."""
    import torch.distributed as dist

    # torchrun ends the others with SIGTERM as soon as one has left; each is to leave with its own status.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    patience = datetime.timedelta(seconds=_PATIENCE_IN_S)
    printed = False
    # A rank that died or a store that is gone must not turn one clear message into a traceback.
    with contextlib.suppress(Exception):
        store, rank, world_size = next(dist.rendezvous("env://", timeout=patience))
        if rank == 0:
            store.set("user_error/printed", "yes")
        store.wait(["user_error/printed"], patience)
        printed = True
        store.set(f"user_error/seen/{rank}", "yes")
        if rank == 0:  # may host the store: it leaves last
            store.wait([f"user_error/seen/{other}" for other in range(world_size)], patience)
    return printed
