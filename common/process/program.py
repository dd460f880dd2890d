"""Runs a program's main() and defines its exit status.

A UserError becomes one message and status 2, no matter how many ranks raise it.
"""

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

from common.errors import LostRankError, RankFailedError, RendezvousError, UserError
from common.process.environment import (
    check_environment,
    launcher_run_id,
    rank_from_env,
    separate_processes_warning,
    strangers_can_join,
    world_size_from_env,
)
from common.process.memory import allocation_failure, free_memory
from common.process.rerun import what_the_same_command_does
from common.process.standard_streams import protect_standard_streams
from common.process.stop_signals import unwind_on_signals

USER_ERROR_STATUS = 2

# Longest time that the other ranks wait for rank 0 to print its message.
_REPORT_TIMEOUT_IN_S = 20.0

# A longer usage would hide the error that is printed before it.
_MAX_USAGE_LINES = 5


class ArgumentParser(argparse.ArgumentParser):
    """Raises command-line errors as UserErrors, so that only one rank prints them under torchrun."""

    def error(self, message: str) -> NoReturn:
        usage = self.format_usage().rstrip()
        raise UserError(f"{message}\n{usage}" if usage.count("\n") < _MAX_USAGE_LINES else f"{message}. See --help")


def run(main: Callable[[], int], after_interrupt: str | None = None, *, one_process: bool = False) -> NoReturn:
    """Check the environment, run `main` and exit with the status that it returns.

    Exceptions become exit statuses:

    - UserError: 2. Rank 0 prints the message. torchrun terminates all workers as soon as one exits, so the other ranks
      wait for rank 0's message first (for a bounded time). A rank prints its own message if rank 0 has no error, such
      as when a directory is missing on only one machine.
    - RendezvousError: 2. Each rank that cannot reach the others prints its own message.
    - KeyboardInterrupt: 130, with one message.
    - RankFailedError, and LostRankError: 1, with one message per rank.
    - An exception because memory ran out: 2, with one message of each rank on which it did.
    - Any other exception: 1, with its traceback.

    Args:
      main: the program; returns its exit status.
      after_interrupt: what the same command does if it is run again after an interrupt. Completes the sentence
        "interrupted; the same command ...". None for a trainer, which depends on its options.
      one_process: refuse to run as one of several processes of torchrun, which would all do the same work and write the
        same files. Stop signals then end `main` like an exception, so that it removes its temporary files.
    """
    protect_standard_streams()
    if one_process:
        unwind_on_signals()
    try:
        _check_launch(one_process=one_process)
        status = main()
    except (RendezvousError, RankFailedError) as error:
        status = USER_ERROR_STATUS if isinstance(error, UserError) else 1
        _print(_message_of_rank(error))
        _exit_immediately(status)
    except UserError as error:
        rank, size = _place()
        if rank == 0:
            _print(f"error: {error}")
        if size > 1 and not _wait_for_report(str(error)) and rank != 0:
            _print(f"error on rank {rank}: {error}")
        status = USER_ERROR_STATUS
    except KeyboardInterrupt:
        if _place()[0] == 0:
            _print(f"interrupted; the same command {after_interrupt or what_the_same_command_does()}")
        status = 128 + signal.SIGINT
        _exit_immediately(status)
    except Exception as error:
        if (failure := allocation_failure(error)) is not None:
            _print(f"error{_of_rank()}: {_out_of_memory(failure)}")
            status = USER_ERROR_STATUS
        else:
            traceback.print_exc()
            status = 1
        _exit_immediately(status)
    sys.exit(status)


def _check_launch(*, one_process: bool) -> None:
    """Raise UserError if the environment describes no launch, or one of several processes against `one_process`."""
    check_environment()
    if one_process and (size := world_size_from_env()) > 1:
        raise UserError(
            f"this program runs in one process, but the environment sets WORLD_SIZE={size}: all {size} processes would "
            "do the same work and write the same files. Start it with python instead of torchrun, or unset WORLD_SIZE"
        )
    if (warning := separate_processes_warning()) is not None:
        _print(f"warning: {warning}")


def _message_of_rank(error: Exception) -> str:
    """Return the message for an error that each rank prints for itself."""
    rank = _place()[0]
    if isinstance(error, LostRankError):
        return f"{type(error).__name__}: {error}"  # the message begins with the rank
    return f"error: {error}" if rank == 0 and isinstance(error, UserError) else f"error on rank {rank}: {error}"


def _out_of_memory(error: BaseException) -> str:
    """Return a message with the place where memory ran out and the limit that applies."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" in {frames[-1].name} ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    problem = (str(error).strip() or type(error).__name__).splitlines()[0]
    reason = free_memory().reason
    return (
        f"out of memory{place}: {problem}. {reason[0].upper()}{reason[1:]}. Raise the limit, or make the batches, "
        "the model or the data smaller"
    )


def _of_rank() -> str:
    rank, size = _place()
    return f" on rank {rank}" if size > 1 else ""


def _place() -> tuple[int, int]:
    """Return rank and world size, or those of a single process if the environment is malformed."""
    try:
        return rank_from_env(), world_size_from_env()
    except UserError:
        return 0, 1


def _exit_immediately(status: int) -> None:
    """Exit without the interpreter's shutdown if that could hang or abort.

    The shutdown waits for communication with ranks that may be gone. It aborts if a thread, such as a save, is in C++
    code.
    """
    if _place()[1] > 1 or any(thread.daemon for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _print(message: str) -> None:
    sys.stderr.write(f"{message}\n")
    sys.stderr.flush()


def _wait_for_report(message: str) -> bool:
    """Wait until rank 0 has printed its error and all ranks have noticed, or until the timeout.

    A rank with another error than rank 0 prints its own, too.

    Args:
      message: the error of this rank.

    Returns:
      True if rank 0 has printed its error.
    """
    import torch.distributed as dist

    from common.distributed.roll_call import Claim, answer_roll, call_roll
    from common.distributed.store import connect, within

    # torchrun sends SIGTERM to the other workers as soon as one exits. Each must exit with its own status.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    rank, size = _place()

    def wait() -> bool:
        launch = {"WORLD_SIZE": str(size), "--rdzv-id": launcher_run_id()}
        if strangers_can_join():
            launch["command"] = repr(sys.argv)
        limit = datetime.timedelta(seconds=_REPORT_TIMEOUT_IN_S)
        store = dist.PrefixStore("user_error", connect(rank, limit))
        if rank == 0:  # may host the store, so it exits last
            roll = call_roll(store, size, launch, _REPORT_TIMEOUT_IN_S)
            roll.store.set("message", message)
            roll.store.wait([f"done/{other}" for other in roll.present], limit)
            return True
        own = answer_roll(store, Claim(rank, launch), _REPORT_TIMEOUT_IN_S)
        if own is None:
            return False
        own.wait(["message"], limit)
        if own.get("message").decode() != message:
            _print(f"error on rank {rank}: {message}")
        with contextlib.suppress(Exception):  # rank 0 may be gone as soon as it sees this
            own.set(f"done/{rank}", "")
        return True

    # A dead rank or a missing store must not turn one clear message into a traceback.
    with contextlib.suppress(Exception):
        return within(3 * _REPORT_TIMEOUT_IN_S, wait)
    return False
