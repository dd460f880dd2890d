"""Launches that share a port, lose a rank while they connect, or are restarted by torchrun, in real processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.ranks import free_port, rank_environment
from tests.support.root import ROOT

pytestmark = pytest.mark.faults

PROGRAM = """
import os, pathlib, signal, sys
from common.distributed import world as world_module
from common.distributed.world import joined_world
from common.errors import UserError
from common.process.program import run

folder, behavior = pathlib.Path(sys.argv[1]), sys.argv[2]


def main() -> int:
    if behavior == "dies while connecting" and os.environ["RANK"] == "1":
        world_module._init_process_group = lambda *_: os._exit(9)
    timeout_in_s = 2.0 if behavior == "dies while connecting" else 20.0
    with joined_world(timeout_in_s, "cpu", identity={"run": str(folder)}) as world:
        attempts = folder / f"attempts-{world.rank}"
        with attempts.open("a") as file:
            file.write(f"{world.consensus.gather(world.rank)}\\n")
        if len(attempts.read_text().splitlines()) == 1:
            if behavior == "is killed once" and world.rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            if behavior == "is refused once":
                raise UserError("only once")
        if behavior == "waits" and world.is_rank_zero:
            print("joined", flush=True)
            sys.stdin.readline()
        world.consensus.gather(None)
    return 0


run(main)
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    for name in ("ours", "theirs"):
        (tmp_path / name).mkdir()
    return path


@pytest.fixture
def start(program: Path):
    """Start a rank by hand, or torchrun with options. All processes are killed at the end of the test."""
    processes = []

    def start(run: str, behavior: str, *options: str, rank: int | None = None, port: int = 0, size: int = 2):
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", *options]
        if rank is not None:
            environment |= rank_environment(rank, size, port)
            launcher = []
        process = subprocess.Popen(
            [sys.executable, *launcher, str(program), str(program.parent / run), behavior],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.terminate()  # torchrun ends its workers, which have sessions of their own
    for process in processes:
        try:
            process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def ended(process) -> tuple[int, str]:
    _, stderr = process.communicate(timeout=100)
    return process.returncode, stderr


def test_strangers_are_refused_and_the_launch_that_they_reach_continues(start):
    """One comes before the launch is complete, and others while it runs."""
    port = free_port()
    rank_0 = start("ours", "waits", rank=0, port=port)
    status, message = ended(start("theirs", "waits", rank=1, port=port))
    assert status == 2
    (line,) = message.splitlines()
    assert line.startswith("error on rank 1: ")
    assert f"127.0.0.1:{port}" in line
    assert "run is " in line

    rank_1 = start("ours", "waits", rank=1, port=port)
    assert rank_0.stdout.readline() == "joined\n"
    strangers = {
        "already taken": start("ours", "waits", rank=1, port=port),
        "address already in use": start("theirs", "waits", rank=0, port=port),
        "WORLD_SIZE is 3 here and 2 there": start("ours", "waits", rank=2, port=port, size=3),
    }
    for fact, stranger in strangers.items():
        status, message = ended(stranger)
        assert status == 2
        assert fact in message
        assert len(message.splitlines()) == 1

    rank_0.stdin.write("\n")
    rank_0.stdin.flush()
    for process in (rank_0, rank_1):
        status, message = ended(process)
        assert status == 0, message


def test_a_rank_that_dies_while_the_ranks_connect_is_one_message(start):
    port = free_port()
    rank_0, rank_1 = (start("ours", "dies while connecting", rank=rank, port=port) for rank in range(2))
    assert ended(rank_1)[0] == 9
    status, message = ended(rank_0)
    assert status == 1
    start_of_message = "LostRankError: rank 0: another rank died while the ranks were connecting"
    assert [line for line in message.splitlines() if line.startswith(start_of_message)]
    assert "Traceback" not in message


@pytest.mark.parametrize("behavior", ["is killed once", "is refused once"])
@pytest.mark.parametrize("rendezvous", ["standalone", "static"])
def test_workers_that_torchrun_restarts_meet_again(behavior, rendezvous, start, tmp_path):
    """torchrun gives the new workers the store of the old ones."""
    options = ["--standalone"] if rendezvous == "standalone" else ["--master-port", str(free_port())]
    status, output = ended(start("ours", behavior, "--max-restarts", "1", *options))
    assert status == 0, output
    for rank in range(2):
        assert (tmp_path / f"ours/attempts-{rank}").read_text() == "[0, 1]\n[0, 1]\n"
    assert output.count("error: only once\n") == (behavior == "is refused once")
