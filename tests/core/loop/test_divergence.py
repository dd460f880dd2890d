"""What is told where numbers go wrong; tests/distributed/ranks/test_divergence.py has several ranks and tables."""

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
from common.reader.reader import BatchReader
from common.tracking.metrics_file import read_metrics
from core.config.training import JobConfig, RuntimeConfig, TrainingConfig
from core.custom_training_loop import train
from core.loop.divergence import Part, first_bad, state_parts
from tests.support.toy import ALONE, ToyBatch, ToyModel, rows_reader, toy_batch

NAN = math.nan


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_the_first_bad_number_is_found(dtype, value):
    good = torch.full((3, 4), torch.finfo(dtype).max, dtype=dtype)
    good[0] *= -1
    bad = torch.zeros(5, 7, 2, dtype=dtype)
    bad[2, 3, 1], bad[4] = value, NAN
    numbers = torch.arange(4)
    empty = torch.empty(0, 3, dtype=dtype)
    assert first_bad([Part("good", good), Part("numbers", numbers), Part("empty", empty)]) is None
    found = first_bad([Part("good", good), Part("bad", bad), Part("worse", torch.full((2,), NAN))], 1)
    assert str(found) == f"bad[2, 3, 1]: {value:g}"
    assert found is not None
    assert found.cause == (1, 1)
    assert str(first_bad([Part("turned", bad[:3].permute(2, 1, 0))])) == f"turned[1, 3, 2]: {value:g}"
    assert str(first_bad([Part("table user", bad[:, :, 1], (100, 0))])) == f"table user, row 102: {value:g}"
    assert str(first_bad([Part("the loss", torch.tensor(value, dtype=dtype))])) == f"the loss: {value:g}"


def test_parameters_come_before_buffers_and_these_before_what_optimizers_remember():
    model = ToyModel(batch_norm=True)
    optimizer = torch.optim.Adam(model.parameters())
    model(toy_batch(8))[0].backward()
    optimizer.step()
    assert first_bad(state_parts(model, optimizer)) is None
    told = []
    optimizer.state[model.out.bias]["exp_avg_sq"][1] = math.inf
    told.append(str(first_bad(state_parts(model, optimizer))))
    model.running_mean[2] = NAN
    told.append(str(first_bad(state_parts(model, optimizer))))
    with torch.no_grad():
        model.out.weight[1, 3] = -math.inf
    told.append(str(first_bad(state_parts(model, optimizer))))
    assert told == [
        "optimizer state exp_avg_sq.out.bias[1]: inf",
        "buffer norm.running_mean[2]: nan",
        "parameter out.weight[1, 3]: -inf",
    ]


class Spoilt(ToyModel):
    """Does something to a batch in the forward passes of some of its calls in training; the first is 1."""

    def __init__(self, when: Callable[[int], bool], spoil: Callable[["Spoilt", ToyBatch], None], **options: Any):
        super().__init__(**options)
        self.calls = 0
        self._when = when
        self._spoil = spoil

    def forward(self, batch: ToyBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        self.calls += self.training
        if self.training and self._when(self.calls):
            self._spoil(self, batch)
        return super().forward(batch)


def spoil_batch(_: ToyModel, batch: ToyBatch) -> None:
    batch.features[5, 2] = NAN


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
    """Of 12 global batches an epoch, 40 steps unless told otherwise; a checkpoint every 6 steps, a log every 5."""
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


def ending(tmp_path: Path, reader: BatchReader[ToyBatch], model: ToyModel, **options: Any) -> list[str]:
    """The lines of the message that a run ends with."""
    with pytest.raises(UserError) as raised:
        run(tmp_path, reader, model, **options)
    return str(raised.value).splitlines()


def skipped_updates(run: Path) -> list[float]:
    return [m.metrics["skipped_updates"] or 0 for m in read_metrics(run / "metrics.jsonl")]


def test_the_end_tells_the_steps_the_first_bad_tensor_the_batch_and_the_checkpoint(tmp_path, reader):
    """From step 9 on, over the logs of steps 10 and 15."""
    model = Spoilt(lambda call: call >= 9, spoil_batch)
    told = ending(tmp_path, reader, model, max_nonfinite_steps=8)
    assert told == [
        "training has diverged: in 9 steps in a row (9 to 17) losses or gradients were not finite, and no update was "
        "made; training.max_nonfinite_steps allows 8.",
        "Step 17 was made of global batch 5 of 12 in epoch 1 (from 0), rows 17 to 20 of each of 4 lanes. Made once "
        "more, what is not finite first is the batch's features[5, 2]: nan.",
        f"The newest checkpoint from before is {tmp_path}/run/checkpoints/6. Lower the learning rates, set "
        "training.max_grad_norm, or correct the data, in a new run with a checkpoint as its "
        "training.initial_checkpoint_dir",
    ]
    assert model.calls == 17 + 1, "no step more, and one made again"
    assert skipped_updates(tmp_path / "run") == [0, 2, 5]
    # A checkpoint that was made meanwhile has the weights of step 8 and the count.
    assert read_state(tmp_path / "run/checkpoints/12")["progress"]["nonfinite_steps"] == 4


@pytest.mark.parametrize("stop", [9, 10, 12, 16])
def test_the_count_goes_on_in_a_resume(tmp_path, reader, stop):
    run(tmp_path, reader, Spoilt(lambda call: call >= 9, spoil_batch), num_train_steps=stop, max_nonfinite_steps=8)
    told = ending(tmp_path, reader, Spoilt(lambda _: True, spoil_batch), max_nonfinite_steps=8)
    assert "in 9 steps in a row (9 to 17)" in told[0]


def test_a_good_step_in_between_begins_the_count_anew(tmp_path, reader):
    run(tmp_path, reader, Spoilt(lambda call: call % 9 != 0, spoil_batch), max_nonfinite_steps=8)
    assert sum(skipped_updates(tmp_path / "run")) == 40 - 4


def test_none_is_allowed_where_none_is_configured(tmp_path, reader):
    told = ending(tmp_path, reader, Spoilt(lambda call: call == 3, spoil_batch), max_nonfinite_steps=0)
    assert "in 1 steps in a row (3 to 3)" in told[0]
    assert told[-1] == "There is no checkpoint yet. Lower the learning rates, or correct the data"


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
        (spoil_weight, "parameter hidden.weight[4, 1]: nan."),
        (spoil_output, "output logits["),
        (spoil_gradient, "the gradient of hidden.bias["),
    ],
)
def test_what_comes_first_is_told_though_all_that_follows_is_not_finite_too(tmp_path, reader, spoil, first):
    """Clipping makes every gradient NaN."""
    told = ending(tmp_path, reader, Spoilt(lambda call: call == 3, spoil), max_nonfinite_steps=2, max_grad_norm=1.0)
    assert "in 3 steps in a row (3 to 5)" in told[0]
    assert f"Made once more, what is not finite first is {first}" in told[1]


def test_a_state_that_is_not_finite_is_never_saved(tmp_path, reader):
    """A parameter that no loss depends on: no gradient tells of it."""

    def spoil(model: ToyModel, _: ToyBatch) -> None:
        with torch.no_grad():
            model.get_parameter("spare")[0] = math.inf

    model = Spoilt(lambda call: call == 8, spoil)
    model.register_parameter("spare", torch.nn.Parameter(torch.zeros(2)))
    told = ending(tmp_path, reader, model)
    assert told[0] == (
        "training has diverged: after step 12 the model is not finite (parameter spare[0]: inf), and it was not saved."
    )
    assert told[1].startswith("The step's last batch was global batch 12 of 12 in epoch 0 (from 0), rows 45 to 48 of")
    assert told[2].startswith(f"The newest checkpoint from before is {tmp_path}/run/checkpoints/6. ")
    assert complete_steps(tmp_path / "run/checkpoints") == [6]


def test_running_statistics_that_overflow_without_a_bad_gradient_are_told_and_not_saved(tmp_path, reader):
    """The variance of 1e25 is infinite, and what it normalises is 0."""

    def spoil(_: ToyModel, batch: ToyBatch) -> None:
        batch.features[:, 2] *= 1e25

    told = ending(tmp_path, reader, Spoilt(lambda call: call == 3, spoil, batch_norm=True))
    assert "after step 6 the model is not finite (buffer norm.running_var[2]: inf)" in told[0]


def test_running_statistics_survive_a_bad_batch(tmp_path, reader):
    run(tmp_path, reader, Spoilt(lambda call: call == 3, spoil_batch, batch_norm=True), num_train_steps=6)
    saved = read_tensors(tmp_path / "run/checkpoints/6")
    assert all(torch.isfinite(tensor).all() for tensor in saved.values())
    assert saved["model.norm.num_batches_tracked"] == 5


def test_float16_may_look_for_its_scale_and_ends_where_it_finds_none(tmp_path, reader):
    def train_where(largest: float, name: str) -> None:
        """A scaled gradient that is larger overflows."""

        def spoil(model: ToyModel, _: ToyBatch) -> None:
            on_gradient(model, lambda gradient: gradient / (gradient.abs().max() < largest))

        model = Spoilt(lambda call: call == 1, spoil)
        run(tmp_path / name, reader, model, amp_dtype="float16", num_train_steps=160)

    train_where(1e-2, "sane")
    assert 5 < sum(skipped_updates(tmp_path / "sane/run")) < 25
    with pytest.raises(UserError, match=r"in 101 steps in a row \(1 to 101\)[^$]*the gradient of hidden.bias"):
        train_where(0.0, "collapsed")
