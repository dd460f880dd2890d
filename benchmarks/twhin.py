"""Edges per second of TwHIN beside a loop written by hand, where a step's time goes, and how it grows with sizes.

    python benchmarks/twhin.py [--only speed,where,scale] [--batch 3000] [--rounds 5] [--seconds 10] [--processes 1]

speed: the real program (python -m projects.twhin.main, started as torchrun starts it) in turns with what one writes by
hand in plain PyTorch: nn.Embedding, a matrix of scores, cross_entropy, torch.optim.Adagrad, batches in memory.
where: the real program under torch.profiler. scale: the real program, one size changed at a time.

The graph is drawn at random and has the shape of FB15k-237: 14,541 entities, 237 relations, 272,115 edges, both
distributed as powers of their ranks; 100 numbers a row, 1000 uniform negatives and 50 of the batch on each side,
softmax, a translation per relation and direction. Edges per second are those of the program's own log, without its
first windows, at equal batches per process. A figure is the median over the rounds, with the smallest and the largest.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import platform
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from tabulate import tabulate  # noqa: E402
from torch import nn  # noqa: E402

from common.batch import Batch  # noqa: E402
from common.device import emulates_bfloat16  # noqa: E402

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


# --- Data and configuration. ---


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
    from projects.twhin.data.layout import EdgeWriter

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


# --- The program. ---


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


# --- The loop written by hand. ---


def by_hand(shape: Shape, seconds: float, sparse: bool) -> float:
    """Edges per second. The loss is the program's: every edge against the same negatives, less its own entity."""
    torch.manual_seed(0)
    columns = [torch.from_numpy(column) for column in draw_edges(shape)]
    entities = nn.Embedding(shape.entities, shape.dim, sparse=sparse)
    nn.init.normal_(entities.weight, std=1e-3)
    translations = [nn.Embedding(RELATIONS, shape.dim, sparse=sparse) for _ in range(2)]
    for translation in translations:
        nn.init.zeros_(translation.weight)
    optimizer = torch.optim.Adagrad([entities.weight, *(translation.weight for translation in translations)], lr=0.1)

    def batches() -> Iterator[list[torch.Tensor]]:
        while True:
            order = torch.randperm(shape.edges)
            for start in range(0, shape.edges - shape.batch + 1, shape.batch):
                yield [column[order[start : start + shape.batch]] for column in columns]

    def side_loss(queries: torch.Tensor, own: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        uniform = torch.randint(shape.entities, (shape.uniform,))
        in_batch = torch.randperm(shape.batch)[: shape.in_batch]
        candidates = torch.cat([entities(uniform), own[in_batch]])
        masked = ids[:, None] == torch.cat([uniform, ids[in_batch]])
        negatives = (queries @ candidates.T).masked_fill(masked, -torch.inf)
        scores = torch.cat([(queries * own).sum(1, keepdim=True), negatives], dim=1)
        return F.cross_entropy(scores, torch.zeros(shape.batch, dtype=torch.int64))

    started_at, steps, warm_up = time.perf_counter(), 0, seconds / 5
    for lhs, rel, rhs in batches():
        left, right = entities(lhs), entities(rhs)
        of_right = side_loss(left + translations[0](rel), right, rhs)
        loss = of_right + side_loss(right + translations[1](rel), left, lhs)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        steps += 1
        passed = time.perf_counter() - started_at
        if warm_up and passed >= warm_up:
            started_at, steps, warm_up = time.perf_counter(), 0, 0.0
        elif not warm_up and passed >= seconds:
            break
    return steps * shape.batch / passed


def run_worker(scratch: Path, spec: dict[str, Any], processes: int, threads: int) -> Any:
    """What a worker of this file prints."""
    log = scratch / "log"
    with started([__file__, "--worker", json.dumps(spec)], processes, threads, log) as running:
        if any(process.wait() for process in running):
            raise fail("the worker", log)
    return json.loads(printed(log).read_text().splitlines()[-1])


# --- Where the time goes. ---

# Of an event's name and those around it, from the inside out, the first that matches tells the group of its own time.
GROUPS = {
    "matrix products": r"aten::(mm|addmm_?|matmul)$",
    "exchange between processes": r"c10d::|gloo:|All2?All|AllToAll|_dist\]|reduce|torch::distributed|comms$",
    "table updates": r"fbgemm::split_embedding\w*backward|CppNode<Split\w*Lookup",
    "lookups": r"look_up$|fbgemm::|^\[",
    "rest of the loss": r"_FusedLoss",
    "relation optimizer": r"Optimizer\.step|non_finite_check",
    "making and waiting for batches": r"batches$",
}
OTHER = "rest of the model, and of the loop"


def profiled(config: str, warm_up: int, steps: int) -> None:
    """Runs the program here; profiles some steps, prints milliseconds of a step by group, and ends the process."""
    from torch.profiler import ProfilerActivity, profile, record_function

    from common.modules.embedding.tables import look_up
    from core.step_feed import StepFeed
    from core.train_step import TrainStep
    from projects.twhin import main as program

    profiler: Any = profile(activities=[ProfilerActivity.CPU])
    began = 0.0

    class ProfiledStep(TrainStep):
        def __call__(self, micro_batches: Sequence[Batch], step: int) -> tuple[torch.Tensor, torch.Tensor]:
            nonlocal began
            if step == warm_up:
                profiler.__enter__()
                began = time.perf_counter()
            elif step == warm_up + steps:
                wall = time.perf_counter() - began
                profiler.__exit__(None, None, None)
                if self._world.is_main:
                    print(json.dumps(by_group(profiler.events(), wall, steps)), flush=True)  # noqa: T201
                os._exit(0)  # without the closing checkpoint
            with record_function("train step"):
                return super().__call__(micro_batches, step)

    class ProfiledFeed(StepFeed):
        def next(self) -> Any:
            with record_function("batches"):
                return super().next()

    def profiled_look_up(*args: Any) -> dict[str, torch.Tensor]:
        with record_function("look_up"):
            return look_up(*args)

    with (
        mock.patch("core.custom_training_loop.TrainStep", ProfiledStep),
        mock.patch("core.custom_training_loop.StepFeed", ProfiledFeed),
        mock.patch("projects.twhin.model.twhin.look_up", profiled_look_up),
        mock.patch("sys.argv", [PROGRAM, "--config", config]),
    ):
        program.main()


def by_group(events: Any, wall: float, steps: int) -> dict[str, float]:
    """Milliseconds of a step, by group, of the thread that makes steps; they add up to the time that passed."""
    patterns = {group: re.compile(pattern) for group, pattern in GROUPS.items()}
    thread = next(event.thread for event in events if event.name == "train step")
    spent = dict.fromkeys([*GROUPS, OTHER], 0.0)
    for event in events:
        if event.thread != thread:
            continue
        around, group = event, None
        while around is not None and group is None:
            group = next((name for name, pattern in patterns.items() if pattern.search(around.name)), None)
            around = around.cpu_parent
        if group is not None:
            spent[group] += event.self_cpu_time_total / 1e3 / steps
    spent[OTHER] = 1e3 * wall / steps - sum(spent.values())
    return spent


def where(scratch: Path, shape: Shape, rounds: int, steps: int) -> str:
    """A table of shares; with several processes those of rank 0."""
    found: dict[int, list[dict[str, float]]] = {1: [], 2: []}
    for _ in range(rounds):
        for processes, spent in found.items():
            with tempfile.TemporaryDirectory(dir=scratch) as directory:
                config = write_config(scratch, Path(directory) / "run", shape, processes, amp=False)
                spec = {"kind": "where", "config": str(config), "warm_up": steps, "steps": steps}
                spent.append(run_worker(Path(directory), spec, processes, 1))
    table = []
    for group in [*GROUPS, OTHER]:
        shares = [[spent[group] / sum(spent.values()) for spent in turns] for turns in found.values()]
        table.append([group, *(spread(share, 1, 100) for share in shares)])
    table.append(["ms per step", *(spread([sum(spent.values()) for spent in turns], 1) for turns in found.values())])
    return markdown(table, ["share of the time, %", *(title(processes) for processes in found)])


# --- Speed and scale. ---


def title(processes: int) -> str:
    return f"{processes} process" + ("es" if processes > 1 else "")


def spread(values: Sequence[float], digits: int = 0, scale: float = 1.0) -> str:
    """Median and range."""
    middle, low, high = (f"{scale * f(values):,.{digits}f}" for f in (statistics.median, min, max))
    return f"{middle} [{low} to {high}]"


def markdown(table: Sequence[Sequence[str]], headers: Sequence[str]) -> str:
    aligned = ("left", *("right" for _ in headers[1:]))
    return tabulate(table, headers, tablefmt="pipe", disable_numparse=True, colalign=aligned)


def speed(scratch: Path, shape: Shape, rounds: int, seconds: float) -> str:
    hand = {
        (threads, sparse): f"by hand, {'sparse' if sparse else 'dense'} gradients, {threads} thread(s)"
        for threads in (1, 2)
        for sparse in (False, True)
    }
    amps = [False] if emulates_bfloat16(torch.device("cpu")) else [False, True]
    programs = {
        (processes, amp): f"ours, {title(processes)} of 1 thread{', enable_amp' if amp else ''}"
        for amp in amps
        for processes in (1, 2)
    }
    found: dict[str, list[float]] = {name: [] for name in [*hand.values(), *programs.values()]}
    for _ in range(rounds):
        for (threads, sparse), name in hand.items():
            spec = {"kind": "by_hand", "shape": dataclasses.asdict(shape), "seconds": seconds, "sparse": sparse}
            found[name].append(run_worker(scratch, spec, 1, threads))
        for (processes, amp), name in programs.items():
            found[name].append(ours(scratch, shape, processes, seconds, amp).edges_per_s)
    # Of dense and sparse gradients the faster.
    bases = [
        max((found[name] for (its, _), name in hand.items() if its == threads), key=statistics.median)
        for threads in (1, 2)
    ]
    table = []
    for name, values in found.items():
        ratios = [[own / other for own, other in zip(values, base, strict=True)] for base in bases]
        table.append([name, spread(values), *(spread(ratio, 2) for ratio in ratios)])
    return markdown(table, ["", "edges/s", "times by hand, 1 thread", "times by hand, 2 threads"])


def scales(base: Shape) -> dict[str, dict[str, Shape]]:
    """By what is changed, and its value."""
    changed = dataclasses.replace
    even = changed(base, exponent=0.0, edges=1_000_000)
    return {
        "edges of a process's batch": {f"{n:,}": changed(base, batch=n) for n in (500, 1000, 2000, 4000, 8000, 16_000)},
        "uniform negatives of a side": {f"{n:,}": changed(base, uniform=n) for n in (100, 500, 1000, 2000, 5000)},
        "numbers a row": {f"{n:,}": changed(base, dim=n) for n in (32, 64, 100, 200, 400)},
        "rows, edges between all alike": {
            f"{n:,}": changed(even, entities=n) for n in (14_541, 100_000, 1_000_000, 5_000_000)
        },
    }


def scale(scratch: Path, base: Shape, rounds: int, seconds: float, processes: int) -> Iterator[str]:
    """A table of each size that is changed."""
    for what, shapes in scales(base).items():
        found: dict[str, list[Measured]] = {value: [] for value in shapes}
        for _ in range(rounds):
            for value, shape in shapes.items():
                found[value].append(ours(scratch, shape, processes, seconds))
        first = next(iter(found.values()))
        table = []
        for value, turns in found.items():
            speeds = [turn.edges_per_s for turn in turns]
            ratios = [own / other.edges_per_s for own, other in zip(speeds, first, strict=True)]
            memory = [turn.memory_mib for turn in turns]
            table.append([value, spread(speeds), spread(ratios, 2), f"{statistics.median(memory):,.0f}"])
        yield markdown(table, [what, "edges/s", "times the first", "memory of all processes, MiB"])


# --- The command line. ---


def hardware() -> str:
    """What the figures were measured on."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    model = found[1] if (found := re.search(r"model name\s*:\s*(.+)", text)) else platform.processor()
    flags = sorted(set(text.split()) & {"avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16"})
    command = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    commit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip() or "unknown"
    return (
        f"{len(os.sched_getaffinity(0))} cores of {model} ({', '.join(flags)}), Python {platform.python_version()}, "
        f"torch {torch.__version__}, commit {commit}"
    )


def tell(text: str) -> None:
    sys.stdout.write(f"{text}\n\n")
    sys.stdout.flush()


def numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def worker(spec: dict[str, Any]) -> None:
    if spec["kind"] == "where":
        profiled(spec["config"], spec["warm_up"], spec["steps"])
    else:
        print(by_hand(Shape(**spec["shape"]), spec["seconds"], spec["sparse"]))  # noqa: T201


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="speed,where,scale", help="which parts, separated by commas")
    parser.add_argument("--batch", type=numbers, default=[3000], help="edges of a process's batch; several with commas")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each measurement")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of a measurement of edges per second")
    parser.add_argument("--steps", type=int, default=50, help="of `where`: steps that are profiled, after as many")
    parser.add_argument("--processes", type=int, default=1, help="of `scale`")
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker is not None:
        worker(args.worker)
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # children end, folders go
    parts = args.only.split(",")
    tell(hardware())
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory)
        if "speed" in parts:
            if emulates_bfloat16(torch.device("cpu")):
                tell("enable_amp is not measured: this CPU has no bfloat16 units.")
            for batch in args.batch:
                tell(
                    f"{batch:,} edges a batch and process\n\n{speed(scratch, Shape(batch), args.rounds, args.seconds)}"
                )
        if "where" in parts:
            for batch in args.batch:
                tell(f"{batch:,} edges a batch and process\n\n{where(scratch, Shape(batch), args.rounds, args.steps)}")
        if "scale" in parts:
            tell(f"{title(args.processes)} of 1 thread; sizes that are not changed as in `speed`")
            for table in scale(scratch, Shape(args.batch[0]), args.rounds, args.seconds, args.processes):
                tell(table)


if __name__ == "__main__":
    main()
