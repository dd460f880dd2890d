import dataclasses
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from common.errors import UserError
from core.custom_training_loop import train
from core.debug_training_loop import train as debug_train
from core.run.components import TrainingComponents
from tests.support.toy import ToyModel, toy_components


def arguments(components: TrainingComponents) -> tuple[Any, ...]:
    return (
        components.config,
        components.model,
        components.optimizer,
        components.learning_rates,
        components.train_reader,
        components.evaluation_sets,
        components.world,
    )


def test_the_debug_loop_takes_the_same_steps(tmp_path: Path) -> None:
    looped, debugged = ToyModel(dropout=0.3), ToyModel(dropout=0.3)
    train(*arguments(toy_components(tmp_path, looped)))
    debug_train(*arguments(toy_components(tmp_path, debugged)))
    for one, other in zip(looped.parameters(), debugged.parameters(), strict=True):
        assert torch.equal(one, other)


def test_every_loss_and_the_evaluation_are_logged_and_nothing_is_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    debug_train(*arguments(toy_components(tmp_path)))
    assert [m.split(":")[0] for m in caplog.messages if m.startswith("step ")] == [f"step {i}" for i in range(1, 11)]
    assert [message for message in caplog.messages if "rows" in message]
    assert not (tmp_path / "run").exists()


def test_several_processes_are_refused(tmp_path: Path) -> None:
    components = toy_components(tmp_path)
    two = dataclasses.replace(components, world=dataclasses.replace(components.world, size=2))
    with pytest.raises(UserError, match="--debug_loop runs in one process"):
        debug_train(*arguments(two))
