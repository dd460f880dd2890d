"""Measures the cost of a checkpoint relative to a plain copy of the same bytes: training stall, save and restore.

    python benchmarks/checkpoint.py [--mb 577,20] [--processes 1,2] [--rounds 7] [--directory /tmp]

Each round takes its turns one after another: it copies the model with its Adam state in memory, saves it as training
does (core.checkpoints.saver), copies the files of the checkpoint and synchronizes them to disk (cp and fsync, by one
process), and restores the checkpoint as a resume does. --mb sets the size of the state (577: the Heavy Ranker's
published shape).

Stall is the time that training stops. The save continues in a thread; its time ends when the checkpoint is durable
under its name. The copy reads its files from the page cache; the restore reads them from disk, because they are removed
from the page cache before. Nothing is deleted while a turn is measured. A figure is the median over the rounds, with
the smallest and the largest; a ratio is that of two medians. The first round, which allocates the memory that the
others reuse, does not count.
"""

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import nn  # noqa: E402

from benchmarks.tables import markdown, spread  # noqa: E402
from common.checkpointing.directory import delete_checkpoint  # noqa: E402
from common.checkpointing.retention import CheckpointRetention  # noqa: E402
from common.distributed.world import World, joined_world  # noqa: E402
from common.reader.order import Position  # noqa: E402
from core.checkpoints.saver import Saver  # noqa: E402
from core.models.dense import DenseModel  # noqa: E402
from core.run.state import TrainingState  # noqa: E402
from core.run.tensors import load_model, load_optimizer, training_tensors  # noqa: E402

ALONE = World(0, 0, 1, torch.device("cpu"))
MEMORY, STALL, SAVE, COPY, RESTORE = "memory", "stall", "save", "copy", "restore"


class Weights(nn.Module):
    """Holds float32 matrices of 1 MB each. Together with their two Adam states, they take `num_mb` MB."""

    def __init__(self, num_mb: int) -> None:
        super().__init__()
        self.matrices = nn.ParameterList(torch.randn(500, 500) for _ in range(max(1, num_mb // 3)))


@contextlib.contextmanager
def timed(into: list[float], world: World) -> Iterator[None]:
    """Append the seconds until all ranks have left the context."""

    def wait_for_all() -> None:
        if world.size > 1:
            torch.distributed.barrier()

    wait_for_all()
    started = time.perf_counter()
    yield
    wait_for_all()
    into.append(time.perf_counter() - started)


def copy(source: Path, target: Path) -> None:
    """Copy the files of a directory, and fsync each copy and the directory."""
    target.mkdir()
    for file in source.iterdir():
        shutil.copyfile(file, target / file.name)
    for path in (*target.iterdir(), target):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def drop_from_page_cache(directory: Path) -> None:
    """Remove the files of a directory, which are synchronized to disk, from the page cache."""
    for path in directory.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def worker(directory: Path, num_mb: int, rounds: int) -> None:
    """Run the rounds. Rank 0 prints the seconds of each round and the bytes of a checkpoint as JSON."""
    torch.set_num_threads(1)
    with joined_world(600, "cpu") as world:
        torch.manual_seed(0)
        weights = Weights(num_mb)
        model = DenseModel(weights, world)
        optimizer = torch.optim.Adam(weights.parameters())
        for parameter in weights.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
        optimizer.zero_grad()
        retention = CheckpointRetention(directory / "checkpoints", 1, None)
        copies = {name: tensor.detach().clone() for name, tensor in training_tensors(model, optimizer).items()}
        saver = Saver(retention, model, optimizer, world)
        position = Position.start(1)
        seconds: dict[str, list[float]] = {name: [] for name in (MEMORY, STALL, SAVE, COPY, RESTORE)}
        for step in range(1, rounds + 2):
            with timed(seconds[MEMORY], world):
                for name, tensor in training_tensors(model, optimizer).items():
                    copies[name].copy_(tensor.detach())
            with timed(seconds[SAVE], world):
                with timed(seconds[STALL], ALONE):
                    saver.save(TrainingState({}, position, step=step))
                saver.wait()
            newest = retention.complete()[-1]
            if world.is_rank_zero:
                with timed(seconds[COPY], ALONE):
                    copy(newest, directory / "copy")
                shutil.rmtree(directory / "copy")
                drop_from_page_cache(newest)
            with timed(seconds[RESTORE], world):
                checkpoint = retention.open_newest(world)
                assert checkpoint is not None
                with checkpoint:
                    load_model(model, checkpoint)
                    load_optimizer(model, optimizer, checkpoint)
            if world.is_rank_zero and step <= rounds:
                delete_checkpoint(newest)
        if world.is_rank_zero:
            num_bytes = sum(file.stat().st_size for file in newest.iterdir())
            counted = {name: values[1:] for name, values in seconds.items()}
            sys.stdout.write(json.dumps({"seconds": counted, "bytes": num_bytes}) + "\n")


def measure(num_mb: int, processes: int, rounds: int, directory: str) -> list[str]:
    """Run one configuration and return its row of the table."""
    python = [sys.executable]
    if processes > 1:
        python += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        arguments = [__file__, "--worker", scratch, "--mb", str(num_mb), "--rounds", str(rounds)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run([*python, *arguments], env=environment, cwd=ROOT, text=True, stdout=subprocess.PIPE)
    if done.returncode != 0:
        raise SystemExit("the benchmark failed")
    result = json.loads(done.stdout.splitlines()[-1])
    seconds, mb = result["seconds"], result["bytes"] / 1e6
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return [
        f"{mb:,.0f} MB, {processes} process{'es' if processes > 1 else ''}",
        *(spread(seconds[name], scale=1e3) for name in (MEMORY, STALL)),
        *(spread(seconds[name], 2) for name in (COPY, SAVE, RESTORE)),
        f"{medians[STALL] / medians[MEMORY]:.2f}",
        *(f"{medians[name] / medians[COPY]:.2f}" for name in (SAVE, RESTORE)),
        *(f"{mb / medians[name]:,.0f}" for name in (COPY, SAVE, RESTORE)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare saves and restores with a plain copy.")
    parser.add_argument("--mb", default="577,20", help="sizes in 10^6 bytes, separated by commas")
    parser.add_argument("--processes", default="1,2", help="numbers of processes, separated by commas")
    parser.add_argument("--rounds", type=int, default=7, help="number of rounds per row")
    parser.add_argument("--directory", default=tempfile.gettempdir(), help="directory on the file system to measure")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    sizes, processes = ([int(word) for word in words.split(",")] for words in (args.mb, args.processes))
    if args.worker is not None:
        worker(args.worker, sizes[0], args.rounds)
        return
    rows = [measure(size, count, args.rounds, args.directory) for size in sizes for count in processes]
    headers = ["", "copy in memory, ms", "stall, ms", "copy, s", "save, s", "restore, s"]
    timings = markdown([row[:6] for row in rows], headers)
    headers = ["", "stall / copy in memory", "save / copy", "restore / copy"]
    headers += ["copy, MB/s", "save, MB/s", "restore, MB/s"]
    sys.stdout.write(f"{timings}\n\n{markdown([[row[0], *row[6:]] for row in rows], headers)}\n")


if __name__ == "__main__":
    main()
