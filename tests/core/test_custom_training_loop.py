"""The training loop compared with one written by hand, and what it hands to trackers.

tests/core/loop/test_trainer.py has what happens between steps.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from common.checkpointing.directory import complete_steps
from common.checkpointing.reader import read_tensors
from common.errors import UserError
from common.numerics import seed_step
from common.optimizers.config import LearningRate, LinearRampToConstant
from common.optimizers.learning_rate import ParameterGroupScheduler
from common.reader.reader import BatchReader
from core.config.training import JobConfig, RuntimeConfig, TrainingConfig
from core.custom_training_loop import Outcome, only_evaluate, train
from core.metrics.evaluation_set import EvaluationSet
from core.metrics.multi_task import MultiTaskMetrics
from tests.support.root import ROOT
from tests.support.toy import ALONE, MemoryTracker, ToyBatch, ToyModel, rows_reader

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
    evaluation_sets = {"rows": EvaluationSet(reader, lambda device: MultiTaskMetrics(["a", "b"], device))}
    rates = ParameterGroupScheduler(optimizer, [RATE])
    return train(config, model, optimizer, rates, reader, evaluation_sets, ALONE, **options)


def test_equals_a_loop_written_by_hand_bit_for_bit(reader: BatchReader[ToyBatch], tmp_path: Path) -> None:
    tracker = MemoryTracker()
    looped = ToyModel(dropout=0.2)
    run(job(tmp_path), reader, looped, trackers={"memory": lambda: tracker})

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
    logged = [m.metrics["loss"] for m in tracker.measurements if m.mode == "train"]
    assert logged == pytest.approx([(one + two) / 2 for one, two in zip(losses[::2], losses[1::2], strict=True)])


def test_trackers_receive_every_measurement_and_cannot_stop_training(
    reader: BatchReader[ToyBatch], tmp_path: Path
) -> None:
    good, bad = MemoryTracker(), MemoryTracker(fails=True)
    outcome = run(job(tmp_path), reader, ToyModel(), trackers={"bad": lambda: bad, "good": lambda: good})
    assert (outcome.step, outcome.stopped_by) == (10, None)
    trained, evaluated = ([m.step for m in good.measurements if m.mode == mode] for mode in ("train", "evaluate"))
    assert (trained, evaluated) == ([2, 4, 6, 8, 10], [5, 10])
    assert len(bad.measurements) == 1
    assert (good.finished, bad.finished) == (1, 1)


def test_the_learning_rates_of_the_step_are_logged(reader: BatchReader[ToyBatch], tmp_path: Path) -> None:
    tracker = MemoryTracker()
    run(job(tmp_path), reader, ToyModel(), trackers={"memory": lambda: tracker})
    rates = [m.metrics["learning_rate/all"] for m in tracker.measurements if m.mode == "train"]
    assert rates == pytest.approx([0.05, 0.1, 0.1, 0.1, 0.1])


def test_a_second_call_continues_the_run_and_overwrite_starts_over(
    reader: BatchReader[ToyBatch], tmp_path: Path
) -> None:
    outcome = run(job(tmp_path), reader, ToyModel())
    assert (outcome.step, outcome.exit_status) == (10, 0)
    assert outcome.checkpoint == tmp_path / "run/checkpoints/10"
    assert run(job(tmp_path, num_train_steps=12), reader, ToyModel()).step == 12
    assert complete_steps(tmp_path / "run/checkpoints") == [5, 10, 12]
    assert run(job(tmp_path, num_train_steps=6), reader, ToyModel(), overwrite_save_dir=True).step == 6
    assert complete_steps(tmp_path / "run/checkpoints") == [5, 6]


def test_too_little_data_is_an_error_before_save_dir_is_created(reader: BatchReader[ToyBatch], tmp_path: Path) -> None:
    larger = BatchReader[ToyBatch](reader.table, lambda *_: pytest.fail("read"), global_batch_size=400, lanes=4)
    with pytest.raises(UserError, match=r"rows\.parquet.* 200 .* 400"):
        run(job(tmp_path), larger, ToyModel())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("option", ["tracker", "gauges", "start"])
def test_an_unknown_option_is_a_type_error(reader: BatchReader[ToyBatch], tmp_path: Path, option: str) -> None:
    options: Any = {option: None}
    with pytest.raises(TypeError, match=rf"^train\(\) .*\b{option};"):
        run(job(tmp_path), reader, ToyModel(), **options)
    for name in (option, "on_fresh_run", "overwrite_save_dir"):  # only train() has these
        options = {name: None}
        with pytest.raises(TypeError, match=rf"^only_evaluate\(\) .*\b{name};"):
            only_evaluate(job(tmp_path), ToyModel(), reader, {}, ALONE, **options)
    assert not (tmp_path / "run").exists()


DENSE_RUN = """
import sys
from pathlib import Path

sys.modules["torchrec"] = None  # importing it would fail
from tests.core.test_custom_training_loop import job, run
from tests.support.toy import ToyModel, rows_reader

directory = Path(sys.argv[1])
assert run(job(directory), rows_reader(directory), ToyModel()).step == 10
assert "core.models.sharded" not in sys.modules
assert not [name for name in sys.modules if name.startswith(("torchrec.", "fbgemm_gpu"))]
"""


def test_a_dense_model_trains_without_torchrec(tmp_path: Path) -> None:
    command = [sys.executable, "-c", DENSE_RUN, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, timeout=120, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
