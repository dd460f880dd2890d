"""Measures TwHIN: edges per second next to a hand-written loop, the time of a step by group, and scaling with sizes.

    python benchmarks/twhin.py [--only speed,where,scale] [--batch 3000] [--rounds 5] [--seconds 10] [--processes 1]

speed: the real program (python -m projects.twhin.main, started as torchrun starts it) in turns with a hand-written loop
in plain PyTorch: nn.Embedding, a matrix of scores, cross_entropy, torch.optim.Adagrad, batches in memory.
where: the real program under torch.profiler.
scale: the real program with one size changed at a time.

The random graph has the shape of FB15k-237: 14,541 entities, 237 relations and 272,115 edges. Entities and relations
have power-law frequencies. The model has embeddings of dimension 100, 1000 uniform and 50 in-batch negatives on each
side, softmax, and a translation per relation and direction. Edges per second come from the program's own log, without
its first windows, at equal batches per process. A figure is the median over the rounds, with the smallest and the
largest.
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
from benchmarks.twhin_program import (  # noqa: E402
    ProgramResult,
    Shape,
    failure,
    measure_program,
    output_path,
    start_ranks,
    write_config,
)
from common.numerics import emulates  # noqa: E402


def run_worker(scratch: Path, spec: dict[str, Any], processes: int, threads: int) -> Any:
    """Run a worker of this file and return the JSON value in its last line of output."""
    log = scratch / "log"
    with start_ranks([__file__, "--worker", json.dumps(spec)], processes, threads, log) as running:
        if any(process.wait() for process in running):
            raise failure("the worker", log)
    return json.loads(output_path(log).read_text().splitlines()[-1])


# --- Time by group ---


def where(scratch: Path, shape: Shape, rounds: int, steps: int) -> str:
    """Return a table of the share of each group in the time of a step on rank 0."""
    timings: dict[int, list[dict[str, float]]] = {1: [], 2: []}
    for _ in range(rounds):
        for processes, turns in timings.items():
            with tempfile.TemporaryDirectory(dir=scratch) as directory:
                config = write_config(scratch, Path(directory) / "run", shape, processes, amp=False)
                spec = {"kind": "where", "config": str(config), "warm_up": steps, "steps": steps}
                turns.append(run_worker(Path(directory), spec, processes, 1))
    table = []
    for group in [*GROUPS, OTHER]:
        shares = [[spent[group] / sum(spent.values()) for spent in turns] for turns in timings.values()]
        table.append([group, *(spread(share, 1, 100) for share in shares)])
    table.append(["ms per step", *(spread([sum(spent.values()) for spent in turns], 1) for turns in timings.values())])
    return markdown(table, ["share of the time, %", *(title(processes) for processes in timings)])


# --- Speed and scale ---


def title(processes: int) -> str:
    return f"{processes} process" + ("es" if processes > 1 else "")


def speed(scratch: Path, shape: Shape, rounds: int, seconds: float) -> str:
    """Return a table of the edges per second of the hand-written loop and of the program."""
    hand = {
        (threads, sparse): f"by hand, {'sparse' if sparse else 'dense'} gradients, {threads} thread(s)"
        for threads in (1, 2)
        for sparse in (False, True)
    }
    amps = [False] if emulates(torch.bfloat16, torch.device("cpu")) else [False, True]
    programs = {
        (processes, amp): f"ours, {title(processes)} of 1 thread{', enable_amp' if amp else ''}"
        for amp in amps
        for processes in (1, 2)
    }
    speeds: dict[str, list[float]] = {name: [] for name in [*hand.values(), *programs.values()]}
    for _ in range(rounds):
        for (threads, sparse), name in hand.items():
            spec = {"kind": "by_hand", "shape": dataclasses.asdict(shape), "seconds": seconds, "sparse": sparse}
            speeds[name].append(run_worker(scratch, spec, 1, threads))
        for (processes, amp), name in programs.items():
            speeds[name].append(measure_program(scratch, shape, processes, seconds, amp).edges_per_s)
    # The reference is the faster of dense and sparse gradients.
    bases = [
        max((speeds[name] for (count, _), name in hand.items() if count == threads), key=statistics.median)
        for threads in (1, 2)
    ]
    table = []
    for name, values in speeds.items():
        ratios = [[own / other for own, other in zip(values, base, strict=True)] for base in bases]
        table.append([name, spread(values), *(spread(ratio, 2) for ratio in ratios)])
    return markdown(table, ["", "edges/s", "times by hand, 1 thread", "times by hand, 2 threads"])


def scales(base: Shape) -> dict[str, dict[str, Shape]]:
    """Return the shapes to measure, by the name of the size that changes and its value."""
    changed = dataclasses.replace
    even = changed(base, exponent=0.0, edges=1_000_000)
    return {
        "edges per batch and process": {
            f"{n:,}": changed(base, batch=n) for n in (500, 1000, 2000, 4000, 8000, 16_000)
        },
        "uniform negatives per side": {f"{n:,}": changed(base, uniform=n) for n in (100, 500, 1000, 2000, 5000)},
        "embedding dimension": {f"{n:,}": changed(base, dim=n) for n in (32, 64, 100, 200, 400)},
        "entities, all equally frequent": {
            f"{n:,}": changed(even, entities=n) for n in (14_541, 100_000, 1_000_000, 5_000_000)
        },
    }


def scale(scratch: Path, base: Shape, rounds: int, seconds: float, processes: int) -> Iterator[str]:
    """Yield a table for each size that changes."""
    for size, shapes in scales(base).items():
        results: dict[str, list[ProgramResult]] = {value: [] for value in shapes}
        for _ in range(rounds):
            for value, shape in shapes.items():
                results[value].append(measure_program(scratch, shape, processes, seconds))
        first = next(iter(results.values()))
        table = []
        for value, turns in results.items():
            speeds = [turn.edges_per_s for turn in turns]
            ratios = [own / other.edges_per_s for own, other in zip(speeds, first, strict=True)]
            memory = [turn.memory_mib for turn in turns]
            table.append([value, spread(speeds), spread(ratios, 2), f"{statistics.median(memory):,.0f}"])
        yield markdown(table, [size, "edges/s", "times the first", "memory of all processes, MiB"])


# --- Command line ---


def hardware() -> str:
    """Return a description of the machine and the software that the figures were measured on."""
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


def show(text: str) -> None:
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
    parser.add_argument("--only", default="speed,where,scale", help="parts to run, separated by commas")
    parser.add_argument(
        "--batch", type=numbers, default=[3000], help="edges per batch and process, separated by commas"
    )
    parser.add_argument("--rounds", type=int, default=5, help="number of rounds")
    parser.add_argument("--seconds", type=float, default=10.0, help="seconds of each measurement of edges per second")
    parser.add_argument("--steps", type=int, default=50, help="`where`: number of warm-up steps, and of profiled steps")
    parser.add_argument("--processes", type=int, default=1, help="`scale`: number of processes")
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker is not None:
        worker(args.worker)
        return
    # Unwinds the `with` blocks, which kill the children and remove the directories.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    parts = args.only.split(",")
    show(hardware())
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory)
        if "speed" in parts:
            if emulates(torch.bfloat16, torch.device("cpu")):
                show("enable_amp is not measured: this CPU has no bfloat16 units.")
            for batch in args.batch:
                table = speed(scratch, Shape(batch), args.rounds, args.seconds)
                show(f"{batch:,} edges per batch and process\n\n{table}")
        if "where" in parts:
            for batch in args.batch:
                table = where(scratch, Shape(batch), args.rounds, args.steps)
                show(f"{batch:,} edges per batch and process\n\n{table}")
        if "scale" in parts:
            show(f"{title(args.processes)} of 1 thread; the sizes that do not change are those of `speed`")
            for table in scale(scratch, Shape(args.batch[0]), args.rounds, args.seconds, args.processes):
                show(table)


if __name__ == "__main__":
    main()
