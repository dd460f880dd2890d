"""The message of a diverged run. tests/distributed/ranks/test_divergence.py covers several ranks and tables."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from common.checkpointing.directory import complete_steps
from common.checkpointing.reader import read_state, read_tensors
from common.errors import UserError
from common.optimizers.config import LearningRate
from common.optimizers.learning_rate import ParameterGroupScheduler
from common.reader.order import Position
from common.reader.reader import BatchReader
from common.tracking.metrics_file import read_metrics
from core.config.training import JobConfig, RuntimeConfig, TrainingConfig
from core.custom_training_loop import train
from tests.support.spoiled_model import NAN, SpoiledModel, spoil_batch
from tests.support.toy import ALONE, ToyBatch, ToyModel, rows_reader


@pytest.fixture
def reader(tmp_path: Path) -> BatchReader[ToyBatch]:
    return rows_reader(tmp_path)


def run(
    tmp_path: Path,
    reader: BatchReader[ToyBatch],
    model: ToyModel,
    amp_dtype: Literal["bfloat16", "float16"] | None = None,
    rate: float = 0.01,
    **training: Any,
) -> None:
    """Train, by default 40 steps with a log every 5 and a checkpoint every 6. An epoch has 12 global batches."""
    keys: dict[str, Any] = {
        "save_dir": str(tmp_path / "run"),
        "num_train_steps": 40,
        "num_epochs": None,
        "train_log_every_n": 5,
        "checkpoint_every_n": 6,
        "eval_every_n": 0,
    }
    runtime = RuntimeConfig(enable_amp=amp_dtype is not None, amp_dtype=amp_dtype or "bfloat16")
    config = JobConfig(training=TrainingConfig(**(keys | training)), runtime=runtime)
    optimizer = torch.optim.Adam([{"params": list(model.parameters()), "name": "all"}], fused=True)
    rates = ParameterGroupScheduler(optimizer, [LearningRate(constant=rate)])
    train(config, model, optimizer, rates, reader, {}, ALONE)


def diverge(tmp_path: Path, reader: BatchReader[ToyBatch], model: ToyModel, **options: Any) -> list[str]:
    """Return the lines of the message that a run ends with."""
    with pytest.raises(UserError) as raised:
        run(tmp_path, reader, model, **options)
    return str(raised.value).splitlines()


def described(reader: BatchReader[ToyBatch], *, batch: int, epoch: int = 0) -> str:
    """Return the reader's description of a batch, counted from 1. A batch takes 4 rows of each of 4 lanes."""
    return reader.describe(Position(epoch, (4 * batch,) * 4))


def skipped_updates(run: Path) -> list[float]:
    return [m.metrics["skipped_updates"] or 0 for m in read_metrics(run / "metrics.jsonl")]


def test_the_message_has_the_steps_the_first_value_the_batch_and_the_checkpoint(
    tmp_path: Path, reader: BatchReader[ToyBatch]
) -> None:
    """All steps from 9 on are bad, across the logs of steps 10 and 15."""
    model = SpoiledModel(lambda call: call >= 9, spoil_batch)
    steps, batch, advice = diverge(tmp_path, reader, model, max_nonfinite_steps=8)
    assert "9 steps in a row (9 to 17)" in steps
    assert "training.max_nonfinite_steps allows 8" in steps
    assert "Step 17 " in batch
    assert described(reader, epoch=1, batch=5) in batch
    assert "the batch's features[5, 2]: nan" in batch
    assert f"{tmp_path}/run/checkpoints/6." in advice
    assert "training.max_grad_norm" in advice
    assert "training.initial_checkpoint_dir" in advice
    assert model.calls == 17 + 1, "no further step, and one step repeated"
    assert skipped_updates(tmp_path / "run") == [0, 2, 5]
    # The checkpoint in between has the weights of step 8, and the count.
    assert read_state(tmp_path / "run/checkpoints/12")["progress"]["nonfinite_steps"] == 4


@pytest.mark.parametrize("stop", [9, 10, 12, 16])
def test_a_resume_continues_the_count(tmp_path: Path, reader: BatchReader[ToyBatch], stop: int) -> None:
    model = SpoiledModel(lambda call: call >= 9, spoil_batch)
    run(tmp_path, reader, model, num_train_steps=stop, max_nonfinite_steps=8)
    message = diverge(tmp_path, reader, SpoiledModel(lambda _: True, spoil_batch), max_nonfinite_steps=8)
    assert "9 steps in a row (9 to 17)" in message[0]


def test_a_good_step_restarts_the_count(tmp_path: Path, reader: BatchReader[ToyBatch]) -> None:
    run(tmp_path, reader, SpoiledModel(lambda call: call % 9 != 0, spoil_batch), max_nonfinite_steps=8)
    assert sum(skipped_updates(tmp_path / "run")) == 40 - 4


def test_a_limit_of_zero_allows_no_skipped_step(tmp_path: Path, reader: BatchReader[ToyBatch]) -> None:
    model = SpoiledModel(lambda call: call == 3, spoil_batch)
    message = diverge(tmp_path, reader, model, max_nonfinite_steps=0)
    assert "1 steps in a row (3 to 3)" in message[0]
    assert message[-1].startswith("There is no checkpoint yet.")


def test_micro_batches_are_numbered_in_the_message(tmp_path: Path, reader: BatchReader[ToyBatch]) -> None:
    model = SpoiledModel(lambda call: call == 4, spoil_batch)
    message = diverge(tmp_path, reader, model, max_nonfinite_steps=0, gradient_accumulation=2)
    assert "(2 to 2)" in message[0]
    assert f"2 micro-batches, {described(reader, batch=3)}, to {described(reader, batch=4)}" in message[1]
    assert "micro-batch 2's features[5, 2]: nan" in message[1]


def spoil_weight(model: ToyModel, _: ToyBatch) -> None:
    with torch.no_grad():
        model.hidden.weight[4, 1] = NAN


def spoil_output(model: ToyModel, _: ToyBatch) -> None:
    with torch.no_grad():
        model.out.weight.fill_(2e38)
        model.out.bias.fill_(3e38)


def on_gradient(model: ToyModel, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    if not model.hidden.bias._backward_hooks:
        model.hidden.bias.register_hook(change)  # type: ignore[no-untyped-call]


def spoil_gradient(model: ToyModel, _: ToyBatch) -> None:
    on_gradient(model, lambda gradient: gradient * math.inf)


@pytest.mark.parametrize(
    ("spoil", "first"),
    [
        (spoil_weight, "parameter hidden.weight[4, 1]: nan"),
        (spoil_output, "output logits["),
        (spoil_gradient, "the gradient of hidden.bias["),
    ],
)
def test_the_message_names_the_first_cause_among_all_that_is_nonfinite(
    tmp_path: Path, reader: BatchReader[ToyBatch], spoil: Callable[[ToyModel, ToyBatch], None], first: str
) -> None:
    """Clipping turns every gradient into NaN."""
    model = SpoiledModel(lambda call: call == 3, spoil)
    message = diverge(tmp_path, reader, model, max_nonfinite_steps=2, max_grad_norm=1.0)
    assert "3 steps in a row (3 to 5)" in message[0]
    assert f"the first non-finite value is {first}" in message[1]


def test_a_nonfinite_state_is_never_saved(tmp_path: Path, reader: BatchReader[ToyBatch]) -> None:
    """The parameter is frozen, so that no gradient shows it."""

    def spoil(model: ToyModel, _: ToyBatch) -> None:
        with torch.no_grad():
            model.get_parameter("spare")[0] = math.inf

    model = SpoiledModel(lambda call: call == 8, spoil)
    model.register_parameter("spare", torch.nn.Parameter(torch.zeros(2), requires_grad=False))
    state, batch, advice = diverge(tmp_path, reader, model)
    assert model.calls == 18, "it is reported when the next checkpoint is due"
    assert "after step 12" in state
    assert "(parameter spare[0]: inf)" in state
    assert "not saved" in state
    assert described(reader, batch=12) in batch
    assert f"{tmp_path}/run/checkpoints/6." in advice
    assert complete_steps(tmp_path / "run/checkpoints") == [6]


def test_a_nonfinite_final_state_is_not_saved(tmp_path: Path, reader: BatchReader[ToyBatch]) -> None:
    model = SpoiledModel(lambda call: call == 9, spoil_weight)
    state, batch, advice = diverge(tmp_path, reader, model, num_train_steps=9)
    assert "after step 9 (parameter hidden.weight[4, 1]: nan)" in state
    assert described(reader, batch=9) in batch
    assert f"{tmp_path}/run/checkpoints/6." in advice
    assert complete_steps(tmp_path / "run/checkpoints") == [6]


def test_too_many_skipped_updates_are_reported_before_a_state_that_was_not_saved(
    tmp_path: Path, reader: BatchReader[ToyBatch]
) -> None:
    model = SpoiledModel(lambda call: call == 6, spoil_weight)
    steps, values, advice = diverge(tmp_path, reader, model, max_nonfinite_steps=2)
    assert "3 steps in a row (6 to 8)" in steps
    assert "parameter hidden.weight[4, 1]: nan" in values
    assert advice.startswith("There is no checkpoint yet.")


def test_running_statistics_that_overflow_with_finite_gradients_are_not_saved(
    tmp_path: Path, reader: BatchReader[ToyBatch]
) -> None:
    """The variance of 1e25 is infinite in float32, and the normalized value is 0."""

    def spoil(_: ToyModel, batch: ToyBatch) -> None:
        batch.features[:, 2] *= 1e25

    message = diverge(tmp_path, reader, SpoiledModel(lambda call: call == 3, spoil, batch_norm=True))
    assert "after step 6" in message[0]
    assert "(buffer norm.running_var[2]: inf)" in message[0]


def test_running_statistics_survive_a_bad_batch(tmp_path: Path, reader: BatchReader[ToyBatch]) -> None:
    run(tmp_path, reader, SpoiledModel(lambda call: call == 3, spoil_batch, batch_norm=True), num_train_steps=6)
    saved = read_tensors(tmp_path / "run/checkpoints/6")
    assert all(torch.isfinite(tensor).all() for tensor in saved.values())
    assert saved["model.norm.num_batches_tracked"] == 5


def test_float16_may_search_for_its_scale_but_ends_if_there_is_none(
    tmp_path: Path, reader: BatchReader[ToyBatch]
) -> None:
    def train_with_overflow_above(largest: float, name: str) -> None:
        """Train a model in which a scaled gradient above `largest` overflows."""

        def spoil(model: ToyModel, _: ToyBatch) -> None:
            on_gradient(model, lambda gradient: gradient / (gradient.abs().max() < largest))

        model = SpoiledModel(lambda call: call == 1, spoil)
        run(tmp_path / name, reader, model, amp_dtype="float16", num_train_steps=160)

    train_with_overflow_above(1e-2, "sane")
    assert 5 < sum(skipped_updates(tmp_path / "sane/run")) < 25
    with pytest.raises(UserError, match=r"101 steps in a row \(1 to 101\)[^$]*the gradient of hidden.bias"):
        train_with_overflow_above(0.0, "collapsed")
