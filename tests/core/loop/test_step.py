import copy
import math
from typing import Any

import pytest
import torch

from common.distributed.world import World
from common.optimizers.config import LearningRate, PiecewiseConstant
from core.loop.step import TrainStep
from tests.support.toy import (
    CPU,
    ToyBatch,
    ToyModel,
    gradients,
    largest_difference,
    toy_batch,
    toy_step,
    true_gradients,
)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_micro_batches_have_the_gradients_of_the_whole_batch(count: int) -> None:
    batch = toy_batch(24)
    model = ToyModel()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    loss, skipped = toy_step(model)(batch.parts(count), 1)

    expected = true_gradients(batch)
    assert largest_difference(gradients(model), expected) < 1e-6
    moved = {name: before[name] - p.detach() for name, p in model.named_parameters()}
    assert largest_difference(moved, expected) < 1e-6
    assert skipped.item() == 0
    assert loss.item() == pytest.approx(ToyModel()(batch)[0].item(), abs=1e-6)
    assert not loss.requires_grad


def test_gradients_do_not_accumulate_over_steps() -> None:
    model = ToyModel()
    step = toy_step(model, learning_rate=LearningRate(constant=0.0))
    for number in (1, 2, 3):
        step([toy_batch(8)], number)
    assert largest_difference(gradients(model), true_gradients(toy_batch(8))) < 1e-6


def norm_of(tensors: dict[str, torch.Tensor]) -> float:
    return math.sqrt(sum(t.double().square().sum().item() for t in tensors.values()))


@pytest.mark.parametrize("amp", [None, torch.float16])
@pytest.mark.parametrize("share", [0.25, 4.0])
def test_clipping_scales_unscaled_gradients_down_to_the_norm(amp: torch.dtype | None, share: float) -> None:
    batch = toy_batch(16)
    unclipped = ToyModel()
    toy_step(unclipped, amp=amp)([batch], 1)
    truth = gradients(unclipped)
    norm = norm_of(truth)
    assert norm == pytest.approx(norm_of(true_gradients(batch)), rel=1e-2), "unscaled"

    model = ToyModel()
    toy_step(model, amp=amp, max_grad_norm=share * norm)([batch], 1)
    coefficient = min(1.0, share * norm / (norm + 1e-6))
    expected = {name: gradient.double() * coefficient for name, gradient in truth.items()}
    assert largest_difference(gradients(model), expected) < 1e-7


class WatchedModel(ToyModel):
    """Records the dtypes of its logits."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: set[torch.dtype] = set()

    def forward(self, batch: ToyBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        loss, outputs = super().forward(batch)
        self.dtypes.add(outputs["logits"].dtype)
        return loss, outputs


@pytest.mark.parametrize("amp", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("fused", [False, True])
def test_training_under_autocast_lowers_the_loss(amp: torch.dtype, fused: bool) -> None:
    model = WatchedModel()
    optimizer = torch.optim.Adam(model.parameters(), fused=fused)
    step = toy_step(model, optimizer=optimizer, learning_rate=LearningRate(constant=0.02), amp=amp)
    losses = [step([toy_batch(64)], number) for number in range(1, 61)]
    assert sum(skipped.item() for _, skipped in losses) == 0
    assert losses[-1][0].item() < 0.6 * losses[0][0].item()
    assert step.scaler.is_enabled() == (amp == torch.float16)
    assert model.dtypes == {amp}


OPTIMIZERS: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    "Adam": (torch.optim.Adam, {}),
    "fused Adam": (torch.optim.Adam, {"fused": True}),
    "fused SGD": (torch.optim.SGD, {"momentum": 0.9, "fused": True}),
}


def stepper(model: ToyModel, kind: str, amp: torch.dtype | None) -> tuple[TrainStep, torch.optim.Optimizer]:
    make, options = OPTIMIZERS[kind]
    optimizer = make(model.parameters(), **{"lr": 0.1, **options})
    rate = LearningRate(constant=0.01)
    return toy_step(model, optimizer=optimizer, learning_rate=rate, amp=amp, max_grad_norm=1.0), optimizer


def bad_batch() -> ToyBatch:
    batch = toy_batch(8, seed=2)
    batch.weights[3, 1] = math.nan
    return batch


@pytest.mark.parametrize("amp", [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_nonfinite_loss_changes_nothing(kind: str, amp: torch.dtype | None) -> None:
    model = ToyModel(batch_norm=True)
    step, optimizer = stepper(model, kind, amp)
    _, skipped = step([toy_batch(8, seed=1)], 1)
    assert skipped.item() == 0
    weights, state = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict()["state"])

    # One bad micro-batch spoils the step, even if it is not the last.
    loss, skipped = step([bad_batch(), toy_batch(8, seed=3)], 2)
    assert math.isnan(loss.item())
    assert skipped.item() == 1
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())
    for index, values in optimizer.state_dict()["state"].items():
        assert all(torch.equal(state[index][key], value) for key, value in values.items())

    # The next step equals that of a run without the bad one.
    _, skipped = step([toy_batch(8, seed=4)], 3)
    assert skipped.item() == 0
    unspoiled = ToyModel(batch_norm=True)
    unspoiled_step, _ = stepper(unspoiled, kind, amp)
    unspoiled_step([toy_batch(8, seed=1)], 1)
    unspoiled_step([toy_batch(8, seed=4)], 3)
    tolerance = 1e-3 if amp == torch.float16 else 0.0  # the scaler has halved its scale
    assert largest_difference(model.state_dict(), unspoiled.state_dict()) <= tolerance
    assert not torch.equal(model.out.weight, weights["out.weight"])


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_nonfinite_first_step_changes_nothing(kind: str) -> None:
    model = ToyModel()
    step, _ = stepper(model, kind, None)
    _, skipped = step([bad_batch()], 1)
    assert skipped.item() == 1
    assert largest_difference(model.state_dict(), ToyModel().state_dict()) == 0
    step([toy_batch(8)], 2)
    unspoiled = ToyModel()
    stepper(unspoiled, kind, None)[0]([toy_batch(8)], 2)
    assert largest_difference(model.state_dict(), unspoiled.state_dict()) == 0


HUGE = 3e30  # finite in float32, but its square is not


def spoiled_step(kind: str, amp: torch.dtype | None, max_grad_norm: float | None, loss_scale: float | None) -> None:
    """Train a step, then one whose scaled gradients are HUGE, and assert that the latter changes nothing."""
    model = ToyModel(batch_norm=True)
    make, options = OPTIMIZERS[kind]
    optimizer = make(model.parameters(), **{"lr": 0.1, **options})
    rate = LearningRate(constant=0.01)
    step = toy_step(model, optimizer=optimizer, learning_rate=rate, amp=amp, max_grad_norm=max_grad_norm)
    step([toy_batch(8, seed=1)], 1)
    if loss_scale is not None:
        step.scaler.load_state_dict({**step.scaler.state_dict(), "scale": loss_scale})
    for parameter in model.parameters():
        parameter.register_hook(lambda gradient: torch.full_like(gradient, HUGE))  # type: ignore[no-untyped-call]
    weights, state = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict()["state"])
    _, skipped = step([toy_batch(8, seed=2)], 2)
    assert skipped.item() == 1
    assert largest_difference(model.state_dict(), weights) == 0
    for index, values in optimizer.state_dict()["state"].items():
        assert all(torch.equal(state[index][key], value) for key, value in values.items())


@pytest.mark.parametrize("amp", [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_finite_gradients_with_an_infinite_norm_change_nothing(kind: str, amp: torch.dtype | None) -> None:
    spoiled_step(kind, amp, max_grad_norm=1.0, loss_scale=1.0 if amp == torch.float16 else None)


@pytest.mark.parametrize("max_grad_norm", [None, 1.0])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_gradients_that_overflow_when_they_are_unscaled_change_nothing(kind: str, max_grad_norm: float | None) -> None:
    spoiled_step(kind, torch.float16, max_grad_norm, loss_scale=2.0**-40)


def test_dropout_depends_only_on_seed_step_and_rank() -> None:
    def loss(seed: int, step: int, rank: int) -> float:
        world = World(rank, rank, 1, CPU)
        train_step = toy_step(ToyModel(dropout=0.5), seed=seed, world=world)
        torch.rand(step + 17)  # numbers drawn elsewhere do not matter
        return train_step([toy_batch(16), toy_batch(16)], step)[0].item()

    triples = [(0, 1, 0), (1, 1, 0), (0, 2, 0), (0, 1, 1), (1, 0, 0), (0, 0, 1)]
    losses = [loss(*triple) for triple in triples]
    assert losses == [loss(*triple) for triple in triples]
    assert len(set(losses)) == len(triples)


def test_dropout_differs_between_micro_batches() -> None:
    whole = toy_step(ToyModel(dropout=0.5))([toy_batch(16)], 1)[0].item()
    twice = toy_step(ToyModel(dropout=0.5))([toy_batch(16), toy_batch(16)], 1)[0].item()
    assert whole != twice


def test_learning_rates_follow_the_step_after_an_optimizer_state_is_loaded() -> None:
    staircase = LearningRate(
        piecewise_constant=PiecewiseConstant(learning_rate_boundaries=[1, 2], learning_rate_values=[4.0, 0.5, 0.25])
    )
    model = ToyModel()
    optimizer = torch.optim.SGD(model.parameters(), lr=99.0)
    step = toy_step(model, optimizer=optimizer, learning_rate=staircase)
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # creates new parameter groups
    for number, rate in ((1, 4.0), (2, 0.5), (3, 0.25)):
        before = model.out.weight.detach().clone()
        step([toy_batch(8)], number)
        assert model.out.weight.grad is not None
        expected = before.double() - rate * model.out.weight.grad.double()
        torch.testing.assert_close(model.out.weight.detach().double(), expected, rtol=0, atol=1e-6)
