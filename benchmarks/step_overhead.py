"""Compares the training loop with a bare hand-written loop in the same run, and times the first step of a program.

    python benchmarks/step_overhead.py [--only tiny,production,startup] [--rounds 5]

Both loops train the same model on the same batches, which are in memory, in turns within one process. A figure is the
median over the rounds, with the smallest and the largest. The bare loop is what one writes by hand: forward, zero_grad,
backward, step, in float32, with DistributedDataParallel if there are several processes. Ours is
core.custom_training_loop with its default checks and logging.
"""

import argparse
import contextlib
import dataclasses
import functools
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from tabulate import tabulate  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn.parallel import DistributedDataParallel  # noqa: E402

from benchmarks.tables import spread  # noqa: E402
from common.batch import Batch  # noqa: E402
from common.distributed.world import World, joined_world  # noqa: E402
from common.numerics import emulates  # noqa: E402
from common.optimizers.config import LearningRate  # noqa: E402
from common.optimizers.learning_rate import ParameterGroupScheduler  # noqa: E402
from common.reader.order import Position  # noqa: E402
from common.reader.reader import PositionedBatch  # noqa: E402
from core import custom_training_loop  # noqa: E402
from core.config import load_config_from_yaml  # noqa: E402
from core.config.training import JobConfig, RuntimeConfig, TrainingConfig  # noqa: E402

PRODUCTION_YAML = ROOT / "projects/home/recap/configs/production.yaml"


@dataclasses.dataclass(frozen=True)
class Case:
    """A model and how to run it.

    Attributes:
      model: name of the model, "tiny" or "production".
      batch_size: examples per step of all processes together.
      processes: number of processes.
      threads: number of threads per process.
      warm_up: number of steps before the timed ones.
      steps: number of timed steps.
    """

    model: str
    batch_size: int
    processes: int
    threads: int
    warm_up: int
    steps: int

    @property
    def title(self) -> str:
        plural = "es" if self.processes > 1 else ""
        return f"{self.model}, batch {self.batch_size}, {self.processes} process{plural} of {self.threads} thread(s)"


CASES = [
    Case("tiny", 32, 1, 1, 100, 1000),
    Case("tiny", 64, 2, 1, 50, 400),
    Case("production", 128, 1, 2, 2, 6),
    Case("production", 1024, 1, 2, 1, 2),
    Case("production", 128, 2, 1, 2, 6),
    Case("production", 1024, 2, 1, 1, 2),
]


# --- Models and batches ---


@dataclasses.dataclass(frozen=True)
class TinyBatch(Batch):
    features: torch.Tensor
    labels: torch.Tensor


class Tiny(nn.Module):
    """A network of 64, 32 and 1 units."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, batch: TinyBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        logits = self.net(batch.features)
        return F.binary_cross_entropy_with_logits(logits, batch.labels), {"logits": logits}


def make_model(name: str) -> nn.Module:
    """Return a model with the same initial weights on every call."""
    torch.manual_seed(0)
    if name == "tiny":
        return Tiny()
    from projects.home.recap.config import RecapConfig
    from projects.home.recap.data.schema import FeatureWidths
    from projects.home.recap.model.heavy_ranker import HeavyRanker
    from projects.home.recap.model.model_and_loss import ModelAndLoss

    config = load_config_from_yaml(RecapConfig, PRODUCTION_YAML)
    embeddings = dict.fromkeys(("user_embedding", "user_eng_embedding", "author_embedding"), 200)
    rates = dict.fromkeys(config.model.tasks, (1.0, 1.0))
    ranker = HeavyRanker(config.model, FeatureWidths(2117, 59, embeddings), rates)
    return ModelAndLoss(ranker, list(config.model.tasks.values()))


def make_batches(name: str, rows: int, rank: int) -> list[Batch]:
    """Return a few batches of random numbers."""
    generator = torch.Generator().manual_seed(rank)

    def normal(width: int) -> torch.Tensor:
        return torch.randn(rows, width, generator=generator)

    def flags(width: int) -> torch.Tensor:
        return (normal(width) > 1).float()

    if name == "tiny":
        return [TinyBatch(normal(64), flags(1)) for _ in range(50)]
    from projects.home.recap.data.batch import RecapBatch
    from projects.home.recap.data.parquet import TASKS

    return [
        RecapBatch(
            continuous=normal(2117),
            binary=flags(59),
            labels=flags(len(TASKS)),
            weights=torch.ones(rows, len(TASKS)),
            tasks=TASKS,
            user_embedding=normal(200),
            user_eng_embedding=normal(200),
            author_embedding=normal(200),
        )
        for _ in range(4)
    ]


# --- The two loops ---


class Clock:
    """Times the steps after the warm-up.

    Attributes:
      seconds_per_step: mean time of a step. Set by the last tick().
    """

    def __init__(self, case: Case) -> None:
        self._case = case
        self._started = 0.0

    def tick(self, step: int) -> None:
        """Record the time. Call it before each step, counted from 0, and once after the last."""
        if step == self._case.warm_up:
            self._started = time.perf_counter()
        elif step == self._case.warm_up + self._case.steps:
            self.seconds_per_step = (time.perf_counter() - self._started) / self._case.steps


def bare(case: Case, batches: Sequence[Batch], world: World, fused: bool = False) -> float:
    """Return the seconds per step of the hand-written loop."""
    model = make_model(case.model)
    if world.size > 1:
        model = DistributedDataParallel(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=fused)
    model.train()
    clock = Clock(case)
    for step in range(case.warm_up + case.steps):
        clock.tick(step)
        loss, _ = model(batches[step % len(batches)])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    clock.tick(case.warm_up + case.steps)
    return clock.seconds_per_step


class _AllStepsTimedError(Exception):
    """Ends our loop without its final checkpoint."""


class _TickingScheduler(ParameterGroupScheduler):
    """Keeps the learning rate constant, and ticks the clock, because every step begins with apply()."""

    def __init__(self, optimizer: torch.optim.Optimizer, case: Case, clock: Clock) -> None:
        super().__init__(optimizer, [LearningRate(constant=1e-3)])
        self._last = case.warm_up + case.steps
        self._clock = clock

    def apply(self, step: int) -> None:
        self._clock.tick(step - 1)
        if step > self._last:
            raise _AllStepsTimedError
        super().apply(step)


class _Reader:
    """Delivers an endless stream of batches from memory."""

    fingerprint = "random numbers"
    lanes = 1
    prefetch_batches = 8

    def __init__(self, case: Case, batches: Sequence[Batch]) -> None:
        self.global_batch_size = case.batch_size
        self._batches = batches

    def check_trainable(self) -> None:
        pass

    def remaining_batches(self, position: Position, num_epochs: int | None) -> float:  # noqa: ARG002
        return float("inf")

    def describe(self, position: Position) -> str:
        return f"batch {position.cursors[0]}"

    def train(self, **_: Any) -> Iterator[PositionedBatch[Batch]]:
        for step, batch in enumerate(itertools.cycle(self._batches)):
            yield PositionedBatch(batch, Position(0, (step,)))


def ours(
    case: Case, batches: Sequence[Batch], world: World, amp: bool = False, ema_decay: float | None = None
) -> float:
    """Return the seconds per step of this project's loop."""
    model = make_model(case.model)
    groups = [{"params": list(model.parameters()), "name": "all"}]
    optimizer = torch.optim.Adam(groups, lr=1e-3, fused=True)
    clock = Clock(case)
    reader: Any = _Reader(case, batches)
    with tempfile.TemporaryDirectory() as directory:
        save_dir = [directory]
        if world.size > 1:
            torch.distributed.broadcast_object_list(save_dir)
        config = JobConfig(
            runtime=RuntimeConfig(enable_amp=amp),
            training=TrainingConfig(
                save_dir=save_dir[0], num_train_steps=10**6, checkpoint_every_n=10**6, ema_decay=ema_decay
            ),
        )
        rates = _TickingScheduler(optimizer, case, clock)
        with contextlib.suppress(_AllStepsTimedError):
            custom_training_loop.train(config, model, optimizer, rates, reader, {}, world)
        if world.size > 1:
            torch.distributed.barrier()  # before rank 0 removes the directory
    return clock.seconds_per_step


LOOPS: dict[str, Callable[[Case, Sequence[Batch], World], float]] = {
    "bare": bare,
    "bare, fused Adam": functools.partial(bare, fused=True),
    "ours": ours,
    "ours, ema_decay": functools.partial(ours, ema_decay=0.999),
    "ours, enable_amp": functools.partial(ours, amp=True),
}


# --- Running and printing ---


def loops_of(case: Case) -> list[str]:
    """Return the names of the loops to time. enable_amp is for large models on CPUs that have bfloat16 units."""
    with_amp = case.model == "production" and not emulates(torch.bfloat16, torch.device("cpu"))
    return [name for name in LOOPS if with_amp or "amp" not in name]


def worker(case: Case, rounds: int) -> None:
    """Run the loops in turns. Rank 0 prints the seconds per step of each turn as JSON."""
    torch.set_num_threads(case.threads)
    names = loops_of(case)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    with joined_world(600, "cpu") as world:
        batches = make_batches(case.model, case.batch_size // world.size, world.rank)
        for _ in range(rounds):
            for name in names:
                seconds[name].append(LOOPS[name](case, batches, world))
        if world.is_rank_zero:
            sys.stdout.write(json.dumps(seconds) + "\n")


def launch(arguments: Sequence[str], processes: int, threads: int, **options: Any) -> "subprocess.Popen[str]":
    """Start a program, under torchrun if there are several processes."""
    python = [sys.executable]
    if processes > 1:
        python += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    return subprocess.Popen([*python, *arguments], env=environment, cwd=ROOT, text=True, **options)


def measure(case: Case, rounds: int) -> dict[str, list[float]]:
    """Return the seconds per step of each loop, one value per round."""
    arguments = [__file__, "--worker", str(CASES.index(case)), "--rounds", str(rounds)]
    process = launch(arguments, case.processes, case.threads, stdout=subprocess.PIPE)
    printed, _ = process.communicate()
    if process.returncode != 0:
        raise SystemExit(f"{case.title}: the benchmark failed")
    seconds: dict[str, list[float]] = json.loads(printed.splitlines()[-1])
    return seconds


def show(case: Case, seconds: dict[str, list[float]]) -> None:
    """Print the figures of a case."""
    rows = []
    for name, values in seconds.items():
        row = [name, spread(values, scale=1e6 if case.model == "tiny" else 1e3)]
        if case.model == "tiny":
            for other in ("bare", "bare, fused Adam"):
                pairs = list(zip(values, seconds[other], strict=True))
                added = spread([own - theirs for own, theirs in pairs], scale=1e6)
                share = statistics.median((own - theirs) / theirs for own, theirs in pairs)
                row.append("" if name == other else f"{added}, {share:+.1%}")
        else:
            ratios = [theirs / own for own, theirs in zip(values, seconds["bare"], strict=True)]
            row += [spread([case.batch_size / value for value in values]), spread(ratios, 2)]
        rows.append(row)
    if case.model == "tiny":
        headers = ["loop", "µs per step", "added to bare, µs", "added to bare with fused Adam, µs"]
    else:
        headers = ["loop", "ms per step", "examples/s", "speed, bare = 1"]
    aligned = ("left", *("right" for _ in headers[1:]))
    table = tabulate(rows, headers, disable_numparse=True, colalign=aligned)
    sys.stdout.write(f"\n{case.title}\n{table}\n")
    sys.stdout.flush()


def startup(processes: int) -> float:
    """Return the seconds from the command to the log line of the first step, on a small data set."""
    with tempfile.TemporaryDirectory() as directory:
        data = f"{directory}/data"
        generate = ["-m", "projects.home.recap.tools.generate", "--out", data, "--num_train_examples", "1536"]
        generate += ["--num_validation_examples", "1536"]
        if launch(generate, 1, 1, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).wait() != 0:
            raise SystemExit("cannot generate the data")
        settings = [
            f"training.save_dir={directory}/run",
            "training.train_log_every_n=1",
            f"train_data.inputs={data}/train",
            f"train_data.seg_dense_schema.schema_path={data}/schema.json",
            f"validation_data.validation.inputs={data}/validation",
            f"validation_data.validation.seg_dense_schema.schema_path={data}/schema.json",
        ]
        program = ["-m", "projects.home.recap.main", "--config", "projects/home/recap/configs/local.yaml"]
        program += [word for setting in settings for word in ("--set", setting)]
        started = time.perf_counter()
        process = launch(program, processes, 1, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        assert process.stderr is not None
        first_step = next((time.perf_counter() for line in process.stderr if "step 1 of" in line), None)
        process.communicate()
        if first_step is None or process.returncode != 0:
            raise SystemExit("the program failed before its first step")
        return first_step - started


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the training loop next to a bare loop.")
    parser.add_argument("--only", default="tiny,production,startup", help="parts to run, separated by commas")
    parser.add_argument("--rounds", type=int, default=5, help="number of turns of each loop")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker is not None:
        worker(CASES[args.worker], args.rounds)
        return
    parts = args.only.split(",")
    if "production" in parts and emulates(torch.bfloat16, torch.device("cpu")):
        sys.stdout.write("enable_amp is skipped: this CPU emulates bfloat16, so a step can take 40 times as long\n")
    for case in CASES:
        if case.model in parts:
            # A turn of the tiny model takes a second or two. Shared machines change their speed within seconds, so it
            # needs more turns.
            show(case, measure(case, 4 * args.rounds if case.model == "tiny" else args.rounds))
    if "startup" in parts:
        for processes in (1, 2):
            seconds = [startup(processes) for _ in range(args.rounds)]
            sys.stdout.write(f"\nseconds from command to first step, {processes} process(es): {spread(seconds, 2)}\n")


if __name__ == "__main__":
    main()
