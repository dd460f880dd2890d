"""Generates a random graph, runs the real program on it and measures its speed, for benchmarks/twhin.py."""

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
# With this exponent, the most frequent entity is in 1.2% of the edges, and the most frequent relation in 5.7%.
EXPONENT = 0.65


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sizes of the graph and of the training.

    Attributes:
      batch: edges per batch and process.
      uniform: uniform negatives per side.
      in_batch: in-batch negatives per side.
      dim: embedding dimension.
      entities: number of entities.
      edges: number of edges.
      exponent: exponent of the power law of entity frequencies. 0 makes all entities equally frequent.
    """

    batch: int
    uniform: int = 1000
    in_batch: int = 50
    dim: int = 100
    entities: int = 14_541
    edges: int = 272_115
    exponent: float = EXPONENT


@dataclasses.dataclass(frozen=True)
class ProgramResult:
    """Result of one run.

    Attributes:
      edges_per_s: edges per second of all processes.
      memory_mib: sum of the peak resident memory of all processes, in MiB.
    """

    edges_per_s: float
    memory_mib: float = 0.0


def draw_edges(shape: Shape) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return lhs, rel and rhs, [edges] int64 each."""
    rng = np.random.default_rng(0)
    rows = rng.permutation(shape.entities)  # spreads frequent entities over the table

    def draw(count: int, exponent: float) -> NDArray[np.int64]:
        cumulative = np.cumsum(np.arange(1, count + 1, dtype=np.float64) ** -exponent)
        return np.asarray(np.searchsorted(cumulative, rng.random(shape.edges) * cumulative[-1]), np.int64)

    lhs, rhs = (rows[draw(shape.entities, shape.exponent)] for _ in range(2))
    return lhs, draw(RELATIONS, EXPONENT), rhs


def edges_folder(scratch: Path, shape: Shape) -> Path:
    """Return the directory of the graph. Writes the graph if it does not exist yet."""
    from projects.twhin.tools.graph_files import EdgeWriter

    folder = scratch / f"edges-{shape.entities}-{shape.edges}-{shape.exponent}"
    if not folder.exists():
        with EdgeWriter(folder) as writer:
            writer.write(*draw_edges(shape))
    return folder


def write_config(scratch: Path, run: Path, shape: Shape, processes: int, amp: bool) -> Path:
    """Write the configuration of a run that trains until it is killed and logs a few times per second."""
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
def start_ranks(
    arguments: Sequence[str], processes: int, threads: int, log: Path
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Start Python processes with the environment of torchrun, and kill them when the `with` block ends.

    torchrun itself does not fit here: if it is killed, its workers keep running or save a checkpoint.

    Args:
      arguments: arguments of the Python interpreter.
      processes: number of processes.
      threads: number of OpenMP threads per process.
      log: file for stderr. stdout goes to output_path(log).
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    running: list[subprocess.Popen[bytes]] = []
    with log.open("wb") as errors, output_path(log).open("wb") as output:
        try:
            for rank in range(processes):
                rank_variables = {
                    "RANK": rank,
                    "LOCAL_RANK": rank,
                    "WORLD_SIZE": processes,
                    "LOCAL_WORLD_SIZE": processes,
                }
                torchrun = {
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": port,
                    "OMP_NUM_THREADS": threads,
                } | rank_variables
                environment = os.environ | {name: str(value) for name, value in torchrun.items()}
                command = [sys.executable, *arguments]
                running.append(subprocess.Popen(command, env=environment, cwd=ROOT, stdout=output, stderr=errors))
            yield running
        finally:
            for process in running:
                process.kill()
            for process in running:
                process.wait()


def output_path(log: Path) -> Path:
    """Return the path of the file with the stdout of processes whose stderr goes to `log`."""
    return log.with_suffix(".out")


def failure(name: str, log: Path) -> SystemExit:
    """Return the exception to raise if a process has failed. Its message has the end of the log."""
    return SystemExit(f"{name} failed:\n{log.read_text()[-4000:]}")


def measure_program(scratch: Path, shape: Shape, processes: int, seconds: float, amp: bool = False) -> ProgramResult:
    """Measure the real program on processes of one thread each, for at least `seconds` after its warm-up."""
    with tempfile.TemporaryDirectory(dir=scratch) as directory:
        run, log = Path(directory) / "run", Path(directory) / "log"
        config = write_config(scratch, run, shape, processes, amp)
        with start_ranks(["-m", PROGRAM, "--config", str(config)], processes, 1, log) as running:
            while True:
                if any(process.poll() is not None for process in running):
                    raise failure(PROGRAM, log)
                if (speed := steady_speed(run / "metrics.jsonl", seconds)) is not None:
                    return ProgramResult(speed, sum(peak_memory_mib(process.pid) for process in running))
                time.sleep(0.1)


def steady_speed(metrics: Path, seconds: float) -> float | None:
    """Return the edges per second after the warm-up: the first two windows, then a fifth of `seconds`.

    Returns None if the windows after the warm-up do not cover `seconds` yet.
    """
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
    """Return the peak resident memory of a process in MiB, or 0 if the kernel does not report it."""
    found = re.search(r"VmHWM:\s*(\d+) kB", Path(f"/proc/{process}/status").read_text())
    return int(found[1]) / 1024 if found else 0.0
