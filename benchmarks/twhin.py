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
import dataclasses
import json
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from benchmarks.tables import markdown, spread  # noqa: E402
from benchmarks.twhin_by_hand import by_hand  # noqa: E402
from benchmarks.twhin_profile import GROUPS, OTHER, profiled  # noqa: E402
from benchmarks.twhin_program import Measured, Shape, fail, ours, printed, started, write_config  # noqa: E402
from common.numerics import emulates_bfloat16  # noqa: E402


def run_worker(scratch: Path, spec: dict[str, Any], processes: int, threads: int) -> Any:
    """What a worker of this file prints."""
    log = scratch / "log"
    with started([__file__, "--worker", json.dumps(spec)], processes, threads, log) as running:
        if any(process.wait() for process in running):
            raise fail("the worker", log)
    return json.loads(printed(log).read_text().splitlines()[-1])


# --- Where the time goes. ---


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
