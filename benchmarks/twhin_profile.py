"""Runs the real program under torch.profiler and sums the time of a step by group, for benchmarks/twhin.py."""

import json
import os
import re
import time
from collections.abc import Sequence
from typing import Any
from unittest import mock

import torch

from benchmarks.twhin_program import PROGRAM
from common.batch import Batch

# The own time of an event belongs to the group of the innermost event around it (or itself) whose name matches.
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
    """Run the program in this process, profile some steps, print the milliseconds per step by group, and exit."""
    from torch.profiler import ProfilerActivity, profile, record_function

    from common.modules.embedding.tables import look_up
    from core.loop.feed import StepFeed
    from core.loop.step import TrainStep
    from projects.twhin import main as program

    profiler: Any = profile(activities=[ProfilerActivity.CPU])
    started_at = 0.0

    class ProfiledStep(TrainStep):
        def __call__(self, micro_batches: Sequence[Batch], step: int) -> tuple[torch.Tensor, torch.Tensor]:
            nonlocal started_at
            if step == warm_up:
                profiler.__enter__()
                started_at = time.perf_counter()
            elif step == warm_up + steps:
                wall = time.perf_counter() - started_at
                profiler.__exit__(None, None, None)
                if self._world.is_rank_zero:
                    print(json.dumps(by_group(profiler.events(), wall, steps)), flush=True)  # noqa: T201
                os._exit(0)  # skips the final checkpoint
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
    """Return the milliseconds per step by group, for the thread that runs the steps.

    The groups add up to the elapsed time.

    Args:
      events: events of the profiler.
      wall: elapsed seconds of all steps.
      steps: number of steps.
    """
    patterns = {group: re.compile(pattern) for group, pattern in GROUPS.items()}
    thread = next(event.thread for event in events if event.name == "train step")
    spent = dict.fromkeys([*GROUPS, OTHER], 0.0)
    for event in events:
        if event.thread != thread:
            continue
        enclosing, group = event, None
        while enclosing is not None and group is None:
            group = next((name for name, pattern in patterns.items() if pattern.search(enclosing.name)), None)
            enclosing = enclosing.cpu_parent
        if group is not None:
            spent[group] += event.self_cpu_time_total / 1e3 / steps
    spent[OTHER] = 1e3 * wall / steps - sum(spent.values())
    return spent
