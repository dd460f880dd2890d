import dataclasses
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from common.errors import UserError
from core.custom_training_loop import train
from core.debug_training_loop import train as debug_train
from tests.support.toy import ToyBatch, ToyModel, largest_difference, loop_arguments, toy_components


def test_the_debug_loop_takes_the_same_steps(tmp_path: Path) -> None:
    looped, debugged = ToyModel(dropout=0.3), ToyModel(dropout=0.3)
    train(*loop_arguments(toy_components(tmp_path, looped)))
    debug_train(*loop_arguments(toy_components(tmp_path, debugged)))
    for one, other in zip(looped.parameters(), debugged.parameters(), strict=True):
        assert torch.equal(one, other)


def test_every_loss_and_the_evaluation_are_logged_and_nothing_is_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    debug_train(*loop_arguments(toy_components(tmp_path)))
    assert [m.split(":")[0] for m in caplog.messages if m.startswith("step ")] == [f"step {i}" for i in range(1, 11)]
    assert [message for message in caplog.messages if "rows" in message]
    assert not (tmp_path / "run").exists()


class HugeGradients(ToyModel):
    """Has gradients that are finite in float32, although their norm is not."""

    def forward(self, batch: ToyBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        loss, outputs = super().forward(batch)
        if loss.requires_grad:
            loss.register_hook(lambda gradient: gradient * 1e30)  # type: ignore[no-untyped-call]
        return loss, outputs


def test_an_infinite_norm_skips_the_update_as_in_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    looped, debugged = HugeGradients(), HugeGradients()
    train(*loop_arguments(toy_components(tmp_path, looped, max_grad_norm=1.0)))
    debug_train(*loop_arguments(toy_components(tmp_path, debugged, max_grad_norm=1.0)))
    for model in (looped, debugged):
        assert largest_difference(model.state_dict(), ToyModel().state_dict()) == 0
    steps = [message for message in caplog.messages if "gradient norm" in message]
    assert [message.endswith("gradient norm inf, update skipped") for message in steps] == [True] * 10


def test_an_infinite_norm_without_clipping_spoils_no_gradient(tmp_path: Path) -> None:
    model = HugeGradients()
    debug_train(*loop_arguments(toy_components(tmp_path, model)))
    assert all(parameter.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("loop", [train, debug_train])
def test_frozen_batch_norm_stays_frozen_and_dropout_is_active_again(tmp_path: Path, loop: Any) -> None:
    model = ToyModel(dropout=0.3, batch_norm=True)
    model.norm.eval()
    mean = model.running_mean.clone()
    loop(*loop_arguments(toy_components(tmp_path, model)))
    assert torch.equal(model.running_mean, mean)
    assert (model.training, model.norm.training, model.dropout.training) == (True, False, True)


def test_several_processes_are_refused(tmp_path: Path) -> None:
    components = toy_components(tmp_path)
    two = dataclasses.replace(components, world=dataclasses.replace(components.world, size=2))
    with pytest.raises(UserError, match="--debug_loop runs in one process"):
        debug_train(*loop_arguments(two))
