"""Parameters without a gradient on one rank. tests/distributed/ranks/test_missing_gradients.py covers several ranks."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from common.checkpointing.directory import complete_steps
from common.errors import UserError
from core.custom_training_loop import train
from core.debug_training_loop import train as debug_train
from tests.support.toy import ToyBatch, ToyModel, loop_arguments, toy_batch, toy_components, toy_step


def with_spare(count: int = 1) -> ToyModel:
    """Return a model with unused layers."""
    model = ToyModel()
    model.spares = nn.ModuleList(nn.Linear(2, 2) for _ in range(count))
    return model


@pytest.mark.parametrize("loop", [train, debug_train])
def test_both_loops_name_the_parameters_before_any_update(tmp_path: Path, loop: Any) -> None:
    model = with_spare()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError) as raised:
        loop(*loop_arguments(toy_components(tmp_path, model)))
    message = str(raised.value)
    assert message.startswith("2 of the model's 6 trainable parameters got no gradient")
    assert "spares.0.weight, spares.0.bias.\n" in message
    assert "requires_grad_(False)" in message
    assert " on rank" not in message
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert complete_steps(tmp_path / "run/checkpoints") == []


@pytest.mark.parametrize("loop", [train, debug_train])
def test_frozen_parameters_need_no_gradient(tmp_path: Path, loop: Any) -> None:
    model = with_spare()
    model.spares.requires_grad_(False)
    model.hidden.requires_grad_(False)
    before = model.hidden.weight.clone()
    loop(*loop_arguments(toy_components(tmp_path, model)))
    assert torch.equal(model.hidden.weight, before)


def test_a_gradient_of_zero_is_a_gradient() -> None:
    model = ToyModel()
    with torch.no_grad():
        model.out.weight.zero_()  # the gradient of the hidden layer is 0
    step = toy_step(model)
    step([toy_batch(8)], 1)
    assert model.hidden.weight.grad is not None
    assert not model.hidden.weight.grad.any()


def test_the_message_names_at_most_ten_parameters() -> None:
    step = toy_step(with_spare(8))
    with pytest.raises(UserError, match=r"16 of .* spares\.4\.weight, spares\.4\.bias and 6 more\."):
        step([toy_batch(8)], 1)


class DetachedModel(ToyModel):
    """Its loss depends on no parameter, as if it was computed from the data or under no_grad()."""

    def forward(self, batch: ToyBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        loss, outputs = super().forward(batch)
        return loss.detach(), outputs


@pytest.mark.parametrize("loop", [train, debug_train])
def test_a_loss_without_a_gradient_names_all_parameters(tmp_path: Path, loop: Any) -> None:
    with pytest.raises(UserError, match=r"4 of the model's 4 .*: hidden\.weight, hidden\.bias, out\.weight, out\.bias"):
        loop(*loop_arguments(toy_components(tmp_path, DetachedModel())))


def test_a_model_that_is_frozen_as_a_whole_is_refused() -> None:
    model = ToyModel()
    model.requires_grad_(False)
    with pytest.raises(UserError, match="the model has no trainable parameters"):
        toy_step(model)([toy_batch(8)], 1)
