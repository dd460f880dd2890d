"""For benchmarks/twhin.py: a graph drawn at random, and the real program that trains on it, started and measured."""

import contextlib
import dataclasses
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = "projects.twhin.main"
RELATIONS = 237
# The most frequent entity is then in 1.2% of the edges, the most frequent relation in 5.7%.
EXPONENT = 0.65


@dataclasses.dataclass(frozen=True)
class Shape:
    """What is trained; `batch`, in edges, is that of a process, and negatives are those of a side."""

    batch: int
    uniform: int = 1000
    in_batch: int = 50
    dim: int = 100
    entities: int = 14_541
    edges: int = 272_115
    exponent: float = EXPONENT
    """Of the entities' distribution; 0: all are equally frequent."""


@dataclasses.dataclass(frozen=True)
class Measured:
    edges_per_s: float
    memory_mib: float = 0.0
    """Largest resident memory, of all processes together."""


def draw_edges(shape: Shape) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """lhs, rel, rhs, [edges] each."""
    rng = np.random.default_rng(0)
    names = rng.permutation(shape.entities)  # frequent rows are to lie anywhere in the table

    def draw(count: int, exponent: float) -> NDArray[np.int64]:
        cumulated = np.cumsum(np.arange(1, count + 1, dtype=np.float64) ** -exponent)
        return np.asarray(np.searchsorted(cumulated, rng.random(shape.edges) * cumulated[-1]), np.int64)

    lhs, rhs = (names[draw(shape.entities, shape.exponent)] for _ in range(2))
    return lhs, draw(RELATIONS, EXPONENT), rhs


def edges_folder(scratch: Path, shape: Shape) -> Path:
    """Of the graph, which is written where it isn't there yet."""
    from projects.twhin.tools.graph_files import EdgeWriter

    folder = scratch / f"edges-{shape.entities}-{shape.edges}-{shape.exponent}"
    if not folder.exists():
        with EdgeWriter(folder) as writer:
            writer.write(*draw_edges(shape))
    return folder


def write_config(scratch: Path, run: Path, shape: Shape, processes: int, amp: bool) -> Path:
    """The configuration of a run that goes on until it is ended, and logs a few times a second."""
    adagrad = {"adagrad": {"lr": 0.1}}
    config = {
        "runtime": {"enable_amp": amp},
        "training": {
            "save_dir": str(run),
            "num_train_steps": 10**9,
            "num_epochs": None,
            "checkpoint_every_n": 10**9,
            "train_log_every_n": max(2, 16_000 // shape.batch),
            "eval_every_n": 0,
        },
        "model": {
            "embeddings": {
                "tables": [
                    {
                        "name": "entity",
                        "num_embeddings": shape.entities,
                        "embedding_dim": shape.dim,
                        "sharding": "row_wise",
                        "optimizer": adagrad,
                    }
                ]
            },
            "relations": [{"name": f"relation-{i}", "lhs": "entity", "rhs": "entity"} for i in range(RELATIONS)],
            "loss": "softmax",
            "translation_optimizer": adagrad,
        },
        "train_data": {
            "data_root": str(edges_folder(scratch, shape)),
            "global_batch_size": shape.batch * processes,
            "global_negatives": shape.uniform,
            "in_batch_negatives": shape.in_batch,
        },
    }
    path = run.with_suffix(".yaml")
    path.write_text(json.dumps(config))
    return path


@contextlib.contextmanager
def started(
    arguments: Sequence[str], processes: int, threads: int, log: Path
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Python processes with the environment that torchrun gives them; killed at the end, in whatever way it comes.

    torchrun itself can't be killed so: its processes would remain, or save what they have.

    Args:
      log: file for what they say on stderr; that on stdout goes beside it, to printed().
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    running: list[subprocess.Popen[bytes]] = []
    with log.open("wb") as errors, printed(log).open("wb") as output:
        try:
            for rank in range(processes):
                places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
                torchrun = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": threads} | places
                environment = os.environ | {name: str(value) for name, value in torchrun.items()}
                command = [sys.executable, *arguments]
                running.append(subprocess.Popen(command, env=environment, cwd=ROOT, stdout=output, stderr=errors))
            yield running
        finally:
            for process in running:
                process.kill()
            for process in running:
                process.wait()


def printed(log: Path) -> Path:
    return log.with_suffix(".out")


def fail(what: str, log: Path) -> SystemExit:
    return SystemExit(f"{what} failed:\n{log.read_text()[-4000:]}")


def ours(scratch: Path, shape: Shape, processes: int, seconds: float, amp: bool = False) -> Measured:
    """The real program on some processes of one thread."""
    with tempfile.TemporaryDirectory(dir=scratch) as directory:
        run, log = Path(directory) / "run", Path(directory) / "log"
        config = write_config(scratch, run, shape, processes, amp)
        with started(["-m", PROGRAM, "--config", str(config)], processes, 1, log) as running:
            while True:
                if any(process.poll() is not None for process in running):
                    raise fail(PROGRAM, log)
                if (speed := steady_speed(run / "metrics.jsonl", seconds)) is not None:
                    return Measured(speed, sum(peak_memory_mib(process.pid) for process in running))
                time.sleep(0.1)


def steady_speed(metrics: Path, seconds: float) -> float | None:
    """Edges per second behind the first two windows and a fifth of `seconds`; None: it isn't that long yet."""
    text = metrics.read_text() if metrics.exists() else ""
    lines = text[: text.rfind("\n") + 1].splitlines()
    windows = [json.loads(line)["timing"] for line in lines]
    warm_up, measured, edges = seconds / 5, 0.0, 0.0
    for index, window in enumerate(windows):
        if index < 2 or warm_up > 0:
            warm_up -= window["seconds"]
        else:
            measured += window["seconds"]
            edges += window["seconds"] * window["examples_per_second"]
    return edges / measured if measured >= seconds else None


def peak_memory_mib(process: int) -> float:
    found = re.search(r"VmHWM:\s*(\d+) kB", Path(f"/proc/{process}/status").read_text())
    return int(found[1]) / 1024 if found else 0.0
