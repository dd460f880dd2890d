"""The loop against one written by hand, and what it hands to trackers."""

from pathlib import Path
from typing import Any

import pytest
import torch

from common.checkpointing.reader import read_tensors
from common.numerics import seed_step
from common.optimizers.config import LearningRate, LinearRampToConstant
from common.optimizers.learning_rate import ParameterGroupScheduler
from common.reader.reader import BatchReader
from core.config.training import JobConfig, RuntimeConfig, TrainingConfig
from core.custom_training_loop import Outcome, train
from core.debug_training_loop import train as debug_train
from core.metrics.evaluation_set import EvaluationSet
from core.metrics.multi_task import MultiTaskMetrics
from tests.support.toy import ALONE, Remembering, ToyBatch, ToyModel, rows_reader

RATE = LearningRate(linear_ramp_to_constant=LinearRampToConstant(learning_rate=0.1, num_ramp_steps=4))


@pytest.fixture
def reader(tmp_path: Path) -> BatchReader[ToyBatch]:
    return rows_reader(tmp_path)


def job(tmp_path: Path, **training: Any) -> JobConfig:
    keys: dict[str, Any] = {
        "save_dir": str(tmp_path / "run"),
        "num_train_steps": 10,
        "train_log_every_n": 2,
        "checkpoint_every_n": 5,
    }
    return JobConfig(training=TrainingConfig(**(keys | training)), runtime=RuntimeConfig(seed=3))


def run(config: JobConfig, reader: BatchReader[ToyBatch], model: ToyModel, **options: Any) -> Outcome:
    optimizer = torch.optim.Adam([{"params": list(model.parameters()), "name": "all"}], fused=True)
    partitions = {"rows": EvaluationSet(reader, lambda device: MultiTaskMetrics(["a", "b"], device))}
    return train(
        config, model, optimizer, ParameterGroupScheduler(optimizer, [RATE]), reader, partitions, ALONE, **options
    )


def test_equals_a_loop_written_by_hand_bit_for_bit(reader: BatchReader[ToyBatch], tmp_path: Path) -> None:
    sink = Remembering()
    looped = ToyModel(dropout=0.2)
    run(job(tmp_path), reader, looped, trackers={"memory": lambda: sink})

    model = ToyModel(dropout=0.2)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    losses = []
    batches = reader.train(seed=3)
    for step in range(1, 11):
        seed_step(3, step, 0)
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * min(1.0, step / 4)
        optimizer.zero_grad()
        loss, _ = model(next(batches).batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    batches.close()

    expected = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    saved = read_tensors(tmp_path / "run/checkpoints/10")
    assert all(torch.equal(saved[name], tensor) for name, tensor in expected.items())
    logged = [m.metrics["loss"] for m in sink.measurements if m.mode == "train"]
    assert logged == pytest.approx([(one + two) / 2 for one, two in zip(losses[::2], losses[1::2], strict=True)])


def test_sinks_get_every_measurement_and_none_of_them_stops_training(
    reader: BatchReader[ToyBatch], tmp_path: Path
) -> None:
    good, bad = Remembering(), Remembering(fails=True)
    outcome = run(job(tmp_path), reader, ToyModel(), trackers={"bad": lambda: bad, "good": lambda: good})
    assert (outcome.step, outcome.stopped_by) == (10, None)
    trained, evaluated = ([m.step for m in good.measurements if m.mode == mode] for mode in ("train", "evaluate"))
    assert (trained, evaluated) == ([2, 4, 6, 8, 10], [5, 10])
    assert len(bad.measurements) == 1
    assert (good.finished, bad.finished) == (1, 1)


def test_learning_rates_are_logged_and_those_of_the_step(reader: BatchReader[ToyBatch], tmp_path: Path) -> None:
    sink = Remembering()
    run(job(tmp_path), reader, ToyModel(), trackers={"memory": lambda: sink})
    rates = [m.metrics["learning_rate/all"] for m in sink.measurements if m.mode == "train"]
    assert rates == pytest.approx([0.05, 0.1, 0.1, 0.1, 0.1])


def test_no_evaluation_where_it_is_switched_off(reader: BatchReader[ToyBatch], tmp_path: Path) -> None:
    sink = Remembering()
    run(job(tmp_path, eval_every_n=0), reader, ToyModel(), trackers={"memory": lambda: sink})
    assert {m.mode for m in sink.measurements} == {"train"}


def test_the_debug_loop_makes_the_same_steps(reader: BatchReader[ToyBatch], tmp_path: Path) -> None:
    looped, debugged = ToyModel(), ToyModel()
    run(job(tmp_path, eval_every_n=0), reader, looped)
    optimizer = torch.optim.Adam([{"params": list(debugged.parameters()), "name": "all"}], fused=True)
    debug_train(job(tmp_path), debugged, optimizer, ParameterGroupScheduler(optimizer, [RATE]), reader, {}, ALONE)
    for one, other in zip(looped.parameters(), debugged.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_mean_of_zero_is_told_like_any_other(
    reader: BatchReader[ToyBatch], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Zero:
        headline = ("mean/rce", "mean/auroc")

        def update(self, outputs: Any) -> None:
            pass

        def compute(self) -> dict[str, float | int | None]:
            return {"mean/rce": 0.0, "mean/auroc": None, "examples": 7}

    optimizer = torch.optim.Adam([{"params": list((model := ToyModel()).parameters()), "name": "all"}], fused=True)
    partitions = {"rows": EvaluationSet(reader, lambda _: Zero())}
    with caplog.at_level("INFO"):
        train(job(tmp_path), model, optimizer, ParameterGroupScheduler(optimizer, [RATE]), reader, partitions, ALONE)
    told = [message for message in caplog.messages if message.startswith("evaluated rows")]
    assert told
    assert all(message.endswith(", mean/rce 0") for message in told)
