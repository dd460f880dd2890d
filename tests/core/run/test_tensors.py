from pathlib import Path
from typing import Any

import pytest
import torch

from common.checkpointing.manifest import CheckpointError
from common.checkpointing.reader import CheckpointReader
from common.checkpointing.writer import write_checkpoint
from common.optimizers.config import LearningRate
from core.models.dense import DenseModel
from core.run.tensors import load_model, load_optimizer, training_tensors
from tests.support.toy import ToyModel, dense, toy_batch, toy_step

RATE = LearningRate(constant=0.01)


def trained(*, fused: bool, steps: int = 3) -> tuple[ToyModel, torch.optim.Optimizer]:
    module = ToyModel(batch_norm=True)
    groups: list[dict[str, Any]] = [
        {"params": module.out.parameters(), "name": "out"},
        {"params": [*module.hidden.parameters(), *module.norm.parameters()], "name": "rest"},
    ]
    optimizer = torch.optim.Adam(groups, fused=fused)
    step = toy_step(module, optimizer=optimizer, learning_rate=RATE)
    for number in range(1, steps + 1):
        step([toy_batch(8, seed=number)], number)
    return module, optimizer


def saved(root: Path, module: ToyModel, optimizer: torch.optim.Optimizer) -> CheckpointReader:
    return CheckpointReader(write_checkpoint(root, 3, training_tensors(dense(module), optimizer), {}))


@pytest.mark.parametrize("fused", [False, True])
def test_training_continues_from_loaded_tensors_bit_for_bit(tmp_path: Path, fused: bool) -> None:
    module, optimizer = trained(fused=fused)
    checkpoint = saved(tmp_path, module, optimizer)
    restored, fresh = trained(fused=fused, steps=0)
    torch.nn.init.zeros_(restored.out.weight)
    load_model(dense(restored), checkpoint)
    load_optimizer(dense(restored), fresh, checkpoint)

    for tested, its_optimizer in ((module, optimizer), (restored, fresh)):
        toy_step(tested, optimizer=its_optimizer, learning_rate=RATE)([toy_batch(8, seed=4)], 4)
    assert all(torch.equal(tensor, restored.state_dict()[name]) for name, tensor in module.state_dict().items())
    expected, found = training_tensors(dense(module), optimizer), training_tensors(dense(restored), fresh)
    assert expected.keys() == found.keys()
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())


def test_optimizer_states_are_found_by_the_names_of_parameters(tmp_path: Path) -> None:
    """The order of parameter groups does not matter."""
    module, optimizer = trained(fused=True)
    checkpoint = saved(tmp_path, module, optimizer)
    other = ToyModel(batch_norm=True)
    reordered = torch.optim.Adam(other.parameters(), fused=True)
    load_optimizer(dense(other), reordered, checkpoint)
    assert torch.equal(reordered.state[other.out.weight]["exp_avg"], optimizer.state[module.out.weight]["exp_avg"])


def test_an_optimizer_that_never_stepped_is_loaded_without_states(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path, *trained(fused=False, steps=0))
    module, optimizer = trained(fused=False, steps=0)
    load_optimizer(dense(module), optimizer, checkpoint)
    assert not optimizer.state


def test_training_tensors_share_memory_with_model_and_optimizer() -> None:
    module, optimizer = trained(fused=True)
    tensors = training_tensors(dense(module), optimizer)
    assert tensors["model.out.weight"].data_ptr() == module.out.weight.data_ptr()
    exp_avg = optimizer.state[module.hidden.bias]["exp_avg"]
    assert tensors["optimizer.exp_avg.hidden.bias"].data_ptr() == exp_avg.data_ptr()
    assert {"model.norm.running_mean", "optimizer.exp_avg_sq.hidden.bias", "optimizer.step.out.bias"} <= tensors.keys()


class TablesInBackward(DenseModel):
    """A model whose output layer is updated in backward(), by an optimizer with a state of its own."""

    def __init__(self, module: ToyModel) -> None:
        super().__init__(module, dense(module)._world)
        self.momentum = torch.zeros(2, 8)

    def fused_optimizer_states(self) -> dict[str, torch.Tensor]:
        return {"out.weight.momentum": self.momentum}


def test_states_of_fused_optimizers_are_saved_and_loaded_in_place(tmp_path: Path) -> None:
    module, optimizer = trained(fused=False)
    model = TablesInBackward(module)
    model.momentum.fill_(0.5)
    tensors = training_tensors(model, optimizer)
    assert tensors["table_optimizer.out.weight.momentum"] is model.momentum
    checkpoint = CheckpointReader(write_checkpoint(tmp_path, 3, tensors, {}))
    restored, fresh = trained(fused=False, steps=0)
    loaded = TablesInBackward(restored)
    load_optimizer(loaded, fresh, checkpoint)
    assert torch.equal(loaded.momentum, model.momentum)


def test_weights_of_another_model_are_refused_with_each_difference(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path, *trained(fused=True))
    other = ToyModel()
    other.hidden = torch.nn.Linear(3, 8)
    other.extra = torch.nn.Parameter(torch.ones(1))
    before = other.out.weight.detach().clone()
    with pytest.raises(CheckpointError) as raised:
        load_model(dense(other), checkpoint)
    first, *differences, _ = str(raised.value).splitlines()
    assert str(checkpoint.path) in first
    assert differences == [
        "  norm.bias: only in the checkpoint",
        "  norm.num_batches_tracked: only in the checkpoint",
        "  norm.running_mean: only in the checkpoint",
        "  norm.running_var: only in the checkpoint",
        "  norm.weight: only in the checkpoint",
        "  extra: only in the model",
        "  hidden.weight: [8, 5] in the checkpoint, [8, 3] in the model",
    ]
    assert torch.equal(other.out.weight, before), "nothing was loaded"


def test_a_long_list_of_differences_is_cut_short(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path, *trained(fused=True))
    other = torch.nn.Sequential(*(torch.nn.Linear(1, 1) for _ in range(20)))
    with pytest.raises(CheckpointError, match="and 29 more\n"):
        load_model(dense(other), checkpoint)
