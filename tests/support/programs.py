"""Starts the trainer in separate processes, as a user does, and always ends all of them."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.support.root import ROOT

RECAP, TWHIN = "projects.home.recap.main", "projects.twhin.main"
TIMEOUT_IN_S = 200


def command(arguments: Sequence[str], processes: int, *options: str, module: str = RECAP) -> list[str]:
    """Return the command that trains: plain python for one process, torchrun with `options` for more."""
    if processes == 1:
        return [sys.executable, "-m", module, *arguments]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return [*launcher, *options, "-m", module, *arguments]


def started(
    arguments: Sequence[str], processes: int = 1, *options: str, module: str = RECAP
) -> "contextlib.AbstractContextManager[subprocess.Popen[str]]":
    """Start the trainer and yield its process. Kill it and all its workers at the end."""
    return started_command(command(arguments, processes, *options, module=module))


@contextlib.contextmanager
def started_command(words: Sequence[str]) -> Iterator["subprocess.Popen[str]"]:
    """Start a command, such as torchrun with any options, like started()."""
    process = subprocess.Popen(
        words,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    workers: list[int] = []
    try:
        yield process
        workers = worker_pids(process)
    finally:
        for pid in [*workers, *worker_pids(process)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=TIMEOUT_IN_S)


def finish(
    arguments: Sequence[str], processes: int = 1, *options: str, module: str = RECAP
) -> "subprocess.CompletedProcess[str]":
    """Run the trainer until it ends."""
    with started(arguments, processes, *options, module=module) as process:
        stdout, stderr = process.communicate(timeout=TIMEOUT_IN_S)
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def finish_with_rank_logs(
    arguments: Sequence[str], logs: Path, *, module: str = RECAP
) -> tuple["subprocess.CompletedProcess[str]", list[str]]:
    """Run the trainer under torchrun on two ranks until it ends.

    Returns:
      the process of torchrun with its own output, and the output of each rank.
    """
    with started(arguments, 2, "--redirects", "3", "--log-dir", str(logs), module=module) as process:
        stdout, stderr = process.communicate(timeout=TIMEOUT_IN_S)
    printed = ["".join(path.read_text() for path in sorted(logs.rglob(f"{rank}/std*.log"))) for rank in range(2)]
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr), printed


def wait_for_line(process: "subprocess.Popen[str]", pattern: str) -> str:
    """Read standard error up to a line that matches, and return what was read."""
    assert process.stderr is not None
    read = []
    for line in process.stderr:
        read.append(line)
        if re.search(pattern, line):
            return "".join(read)
    raise AssertionError(f"no line matches {pattern!r} in:\n{''.join(read)}")


def worker_pids(process: "subprocess.Popen[str]") -> list[int]:
    """Return the ids of the processes that torchrun has started, in the order of their ranks."""
    pids = {}
    for children in Path(f"/proc/{process.pid}/task").glob("*/children"):
        for pid in children.read_text().split():
            with contextlib.suppress(OSError):
                environment = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
                ranks = [entry.removeprefix("RANK=") for entry in environment if entry.startswith("RANK=")]
                if ranks:
                    pids[int(ranks[0])] = int(pid)
    return [pids[rank] for rank in sorted(pids)]


def marked_pids(entry: str) -> dict[int, dict[str, str]]:
    """Return the environments of all processes whose environment contains `entry`, by process id."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # the process has ended, or belongs to another user
            entries = path.read_bytes().decode(errors="replace").split("\0")
            if entry in entries:
                found[int(path.parent.name)] = dict(line.split("=", 1) for line in entries if "=" in line)
    return found
