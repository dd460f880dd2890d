from pathlib import Path

import pytest
import torch
from torch import nn

from common.errors import ConfigError
from core.run.footprint import check_memory
from tests.support.little_memory import room_for
from tests.support.toy import ToyModel, toy_components

MIB = 2**20


class LargeModel(ToyModel):
    """Has a parameter of 16 MiB."""

    def __init__(self) -> None:
        super().__init__()
        self.large = nn.Parameter(torch.zeros(4 * MIB))


@pytest.mark.parametrize(
    ("optimizer", "ema_decay", "updates", "copies"),
    [
        (lambda parameters: torch.optim.SGD(parameters), None, 16, 16),  # gradients; weights
        (lambda parameters: torch.optim.SGD(parameters), 0.9, 32, 32),  # the same and averages
        (lambda parameters: torch.optim.Adam(parameters), None, 48, 48),  # gradients or weights, and two states
    ],
)
def test_gradients_states_and_copies_for_checkpoints_must_fit(
    tmp_path: Path, optimizer, ema_decay, updates, copies
) -> None:
    module = LargeModel()
    components = toy_components(tmp_path, module, optimizer=optimizer(list(module.parameters())), ema_decay=ema_decay)
    with room_for((updates + copies + 8) * MIB):
        check_memory(components)
    with room_for((updates + copies - 8) * MIB), pytest.raises(ConfigError) as caught:
        check_memory(components)
    message = str(caught.value)
    assert message.startswith(
        f"training the model needs {updates + copies}.0 MiB, but the address space of this process"
    )
    held = "gradients, averages and optimizer states" if ema_decay else "gradients and optimizer states"
    assert f"{updates}.0 MiB is for {held}, and {copies}.0 MiB for the copy from" in message
