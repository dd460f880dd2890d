"""Two ranks keep the same average, whose buffers of batch norm are those of rank 0, also after a resume."""

from pathlib import Path
from typing import Any

import pytest
import torch

from common.checkpointing.reader import read_tensors
from common.distributed.world import World
from common.tracking.metrics_file import read_metrics
from core.custom_training_loop import train
from core.metrics.evaluation_set import EvaluationSet
from core.metrics.multi_task import MultiTaskMetrics
from tests.support.ranks import run_ranks
from tests.support.toy import ToyModel, dense, loop_arguments, rows_reader, toy_components

DECAY = 0.7


def worker(world: World, directory: Path) -> dict[str, Any]:
    """Train 10 steps at once, and 4 steps and then the others. Return what this rank has in the end."""

    def run(folder: Path, num_train_steps: int) -> dict[str, torch.Tensor]:
        reader = rows_reader(folder, world)
        components = toy_components(
            folder,
            module=(module := ToyModel(dropout=0.3, batch_norm=True)),
            model=dense(module, world),
            train_reader=reader,
            evaluation_sets={"rows": EvaluationSet(reader, lambda device: MultiTaskMetrics(["a", "b"], device))},
            world=world,
            num_train_steps=num_train_steps,
            checkpoint_every_n=1,
            ema_decay=DECAY,
        )
        train(*loop_arguments(components))
        assert components.model.average is not None
        return components.model.average.tensors()

    run(directory / "killed", 4)
    return {"whole": run(directory / "whole", 10), "resumed": run(directory / "killed", 10)}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("averaging")
    for name in ("whole", "killed"):
        (directory / name).mkdir()
        rows_reader(directory / name)
    return directory


@pytest.fixture(scope="module")
def found(directory: Path) -> list[Any]:
    return run_ranks(worker, directory)


def test_all_ranks_have_the_saved_average(found: list[Any], directory: Path) -> None:
    saved = read_tensors(directory / "whole/run/checkpoints/10", "average.")
    assert "norm.running_var" in saved
    for rank in found:
        for average in (rank["whole"], rank["resumed"]):
            assert average.keys() == saved.keys()
            assert all(torch.equal(average[name], tensor) for name, tensor in saved.items())


def test_the_average_is_that_of_the_saved_weights(found: list[Any], directory: Path) -> None:
    initial = ToyModel(dropout=0.3, batch_norm=True).state_dict()
    expected = {name: tensor.double() for name, tensor in initial.items() if tensor.is_floating_point()}
    for n in range(1, 11):
        weights = read_tensors(directory / f"whole/run/checkpoints/{n}", "model.")
        d = min(DECAY, (1 + n) / (10 + n))
        expected = {name: d * value + (1 - d) * weights[name].double() for name, value in expected.items()}
    for name, value in expected.items():
        torch.testing.assert_close(found[1]["whole"][name].double(), value, rtol=1e-5, atol=1e-7)


def test_a_resumed_run_evaluates_the_same(found: list[Any], directory: Path) -> None:
    assert len(found) == 2
    whole, resumed = (
        [(m.step, m.metrics) for m in read_metrics(directory / name / "run/metrics.jsonl") if m.mode == "evaluate"]
        for name in ("whole", "killed")
    )
    assert whole == resumed
    assert len(whole) == 10
