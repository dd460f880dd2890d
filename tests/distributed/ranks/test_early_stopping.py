"""Ranks stop at the same step, although a project's metrics differ between them, also after a resume."""

from pathlib import Path
from typing import Any

import pytest

from common.distributed.world import World
from core.config.training import EarlyStoppingConfig
from core.custom_training_loop import train
from core.metrics.evaluation_set import EvaluationSet
from tests.support.ranks import run_ranks
from tests.support.scripted_run import QUALITY, CountingModel, ScriptedMetrics
from tests.support.toy import dense, loop_arguments, rows_reader, toy_components

RISING = {step: float(step) for step in QUALITY}
CONFIG = EarlyStoppingConfig(partition="rows", metric="quality", mode="max", patience=3)


def worker(world: World, directory: Path) -> list[tuple[int, int | None]]:
    """Train up to step 8, then to the end. Only rank 0 measures that the metric no longer rises."""

    def run(num_train_steps: int) -> tuple[int, int | None]:
        quality = QUALITY if world.is_rank_zero else RISING
        reader = rows_reader(directory, world)
        components = toy_components(
            directory,
            model=dense(module := CountingModel(), world),
            module=module,
            train_reader=reader,
            evaluation_sets={"rows": EvaluationSet(reader, lambda _: ScriptedMetrics(quality))},
            world=world,
            num_train_steps=num_train_steps,
            checkpoint_every_n=2,
            early_stopping=CONFIG,
        )
        outcome = train(*loop_arguments(components))
        return outcome.step, outcome.best.step if outcome.best is not None else None

    return [run(8), run(12), run(12)]


@pytest.mark.parametrize("world_size", [2, 4])
def test_all_ranks_follow_rank_zero(tmp_path: Path, world_size: int) -> None:
    rows_reader(tmp_path)
    found: list[Any] = run_ranks(worker, tmp_path, world_size=world_size)
    assert found == [[(8, 4), (10, 4), (10, 4)]] * world_size
