"""Starts ranks as real processes that communicate over gloo on the CPU.

A launch has a time limit, and all its processes are always killed.
"""

import concurrent.futures
import contextlib
import importlib
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.root import ROOT


def run_ranks(
    worker: Callable[..., Any], *args: Any, world_size: int = 2, timeout_in_s: float = 120.0, joined: bool = True
) -> list[Any]:
    """Run `worker(world, *args)` on every rank of a joined world.

    Each launch costs seconds of imports, so let one worker do the work that several tests examine.

    Args:
      worker: function of a test module, which each process imports again.
      args: further arguments of the worker; must be picklable.
      world_size: number of processes.
      timeout_in_s: longest duration of the launch.
      joined: False to call `worker(rank, *args)`, which joins worlds itself.

    Returns:
      the return values of the workers, by rank.

    Raises:
      RuntimeError: a rank failed, or the time limit has passed. The message has the standard error of each rank.
    """
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        folder = Path(directory)
        (folder / "args").write_bytes(pickle.dumps((worker.__module__, worker.__qualname__, args, joined)))
        port = free_port()
        processes = []
        for rank in range(world_size):
            stderr = stack.enter_context((folder / f"stderr-{rank}").open("w"))
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.ranks", directory],
                cwd=ROOT,
                env={**os.environ, **rank_environment(rank, world_size, port)},
                stdout=stderr,
                stderr=stderr,
                start_new_session=True,
            )
            stack.callback(_kill, process)
            processes.append(process)
        with concurrent.futures.ThreadPoolExecutor(world_size) as pool:
            waits = [pool.submit(_wait, process) for process in processes]
            done, _ = concurrent.futures.wait(waits, timeout_in_s, return_when=concurrent.futures.FIRST_EXCEPTION)
            stack.close()  # kills the ranks that hang, so that their waits end too
        if len(done) < world_size or any(wait.exception() for wait in done):
            outputs = [f"--- rank {rank}\n{(folder / f'stderr-{rank}').read_text()}" for rank in range(world_size)]
            raise RuntimeError("\n".join([f"{worker.__qualname__}: a rank failed or took too long", *outputs]))
        return [pickle.loads((folder / f"result-{rank}").read_bytes()) for rank in range(world_size)]


def rank_environment(rank: int, world_size: int, port: int) -> dict[str, str]:
    """Return the environment variables that torchrun sets for a rank."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }


def free_port() -> int:
    """Return a port on which no process is listening."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _wait(process: subprocess.Popen[bytes]) -> None:
    if status := process.wait():
        raise RuntimeError(f"status {status}")


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _run_worker(folder: Path) -> None:
    from common.distributed.world import joined_world
    from common.process.environment import rank_from_env

    module, name, args, joined = pickle.loads((folder / "args").read_bytes())
    worker = getattr(importlib.import_module(module), name)
    if joined:
        with joined_world(60.0, "cpu", group_of_one=True) as world:
            result = worker(world, *args)
    else:
        result = worker(rank_from_env(), *args)
    (folder / f"result-{rank_from_env()}").write_bytes(pickle.dumps(result))


if __name__ == "__main__":
    _run_worker(Path(sys.argv[1]))
