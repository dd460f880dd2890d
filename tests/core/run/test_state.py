import contextlib
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from common.checkpointing.manifest import CheckpointError
from common.checkpointing.reader import CheckpointReader
from common.checkpointing.writer import write_checkpoint
from common.optimizers.config import LearningRate
from common.reader.order import Position
from core.config.training import TrainingConfig
from core.run.state import Progress, SavedState, find_last_step, load_model, load_optimizer, training_tensors
from tests.support.toy import ToyModel, rows_reader, toy_batch, toy_step

RATE = LearningRate(constant=0.01)


def trained(fused: bool, steps: int = 3) -> tuple[ToyModel, torch.optim.Optimizer]:
    model = ToyModel(batch_norm=True)
    groups: list[dict[str, Any]] = [
        {"params": model.out.parameters(), "name": "out"},
        {"params": [*model.hidden.parameters(), *model.norm.parameters()], "name": "rest"},
    ]
    optimizer = torch.optim.Adam(groups, fused=fused)
    step = toy_step(model, optimizer=optimizer, learning_rate=RATE)
    for number in range(1, steps + 1):
        step([toy_batch(8, seed=number)], number)
    return model, optimizer


def save(root: Path, model: ToyModel, optimizer: torch.optim.Optimizer) -> CheckpointReader:
    return CheckpointReader(write_checkpoint(root, 3, training_tensors(model, optimizer), {}))


@pytest.mark.parametrize("fused", [False, True])
def test_training_goes_on_bit_for_bit_from_what_was_put_back(tmp_path, fused):
    model, optimizer = trained(fused)
    checkpoint = save(tmp_path, model, optimizer)
    restored, fresh = trained(fused, steps=0)
    torch.nn.init.zeros_(restored.out.weight)
    load_model(restored, checkpoint)
    load_optimizer(restored, fresh, checkpoint)

    for tested, its_optimizer in ((model, optimizer), (restored, fresh)):
        toy_step(tested, optimizer=its_optimizer, learning_rate=RATE)([toy_batch(8, seed=4)], 4)
    assert all(torch.equal(tensor, restored.state_dict()[name]) for name, tensor in model.state_dict().items())
    expected, found = training_tensors(model, optimizer), training_tensors(restored, fresh)
    assert expected.keys() == found.keys()
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())


def test_the_state_is_named_by_the_model_not_by_the_order_of_the_groups(tmp_path):
    model, optimizer = trained(True)
    checkpoint = save(tmp_path, model, optimizer)
    other = ToyModel(batch_norm=True)
    reordered = torch.optim.Adam(other.parameters(), fused=True)
    load_optimizer(other, reordered, checkpoint)
    assert torch.equal(reordered.state[other.out.weight]["exp_avg"], optimizer.state[model.out.weight]["exp_avg"])


def test_an_optimizer_that_never_stepped_is_put_back_as_such(tmp_path):
    checkpoint = save(tmp_path, *trained(False, steps=0))
    model, optimizer = trained(False, steps=0)
    load_optimizer(model, optimizer, checkpoint)
    assert not optimizer.state


def test_tensors_are_the_models_own():
    model, optimizer = trained(True)
    tensors = training_tensors(model, optimizer)
    assert tensors["model.out.weight"].data_ptr() == model.out.weight.data_ptr()
    assert {"model.norm.running_mean", "optimizer.exp_avg_sq.hidden.bias", "optimizer.step.out.bias"} <= tensors.keys()


def test_weights_of_another_model_are_refused_naming_each_difference(tmp_path):
    checkpoint = save(tmp_path, *trained(True))
    other = ToyModel()
    other.hidden = torch.nn.Linear(3, 8)
    other.extra = torch.nn.Parameter(torch.ones(1))
    before = other.out.weight.detach().clone()
    with pytest.raises(CheckpointError) as raised:
        load_model(other, checkpoint)
    assert str(raised.value).splitlines() == [
        f"{checkpoint.path}: the weights of another model:",
        "  norm.bias: only in the checkpoint",
        "  norm.num_batches_tracked: only in the checkpoint",
        "  norm.running_mean: only in the checkpoint",
        "  norm.running_var: only in the checkpoint",
        "  norm.weight: only in the checkpoint",
        "  extra: only in the model",
        "  hidden.weight: [8, 5] in the checkpoint, [8, 3] in the model",
        "Configure the model that it was saved from, or give a checkpoint of this one.",
    ]
    assert torch.equal(other.out.weight, before), "nothing was loaded"


def test_a_long_list_of_differences_is_cut(tmp_path):
    checkpoint = save(tmp_path, *trained(True))
    other = torch.nn.Sequential(*(torch.nn.Linear(1, 1) for _ in range(20)))
    with pytest.raises(CheckpointError, match="and 29 more\n"):
        load_model(other, checkpoint)


def test_progress_survives_json_to_the_last_bit():
    progress = Progress(7, Position(2, (3, 4)), {"loss_sum": 0.1 + 0.2, "skipped": 1.0, "steps": 2.0})
    again = Progress.from_json(json.loads(json.dumps(progress.to_json())))
    assert again == progress
    assert Progress.start(3) == Progress(0, Position(0, (0, 0, 0)), {})


def test_the_saved_state_survives_and_another_is_refused(tmp_path):
    saved = SavedState(Progress.start(2), {"scale": 8.0}, {"runtime": {"seed": 3}}, "run-1")
    assert (
        SavedState.of(CheckpointReader(write_checkpoint(tmp_path, 1, {"a": torch.ones(1)}, saved.to_json()))) == saved
    )
    changes: list[dict[str, Any]] = [{"progress": {}}, {"progress": 3}, {"scaler": None}, {"identity": 1}]
    for number, change in enumerate(changes, start=2):
        path = write_checkpoint(tmp_path, number, {"a": torch.ones(1)}, saved.to_json() | change)
        with pytest.raises(CheckpointError, match=f"^{path}: its state is not that of a training run .*; give a"):
            SavedState.of(CheckpointReader(path))


@pytest.mark.parametrize(
    ("num_train_steps", "num_epochs", "gradient_accumulation", "expected"),
    [(10, None, None, 10), (10, 1, None, 10), (1000, 1, None, 12), (1000, 2, 5, 4), (1000, 2, None, 24), (3, 1, 5, 2)],
)
def test_the_last_step_is_the_same_seen_from_any_step(
    tmp_path, num_train_steps, num_epochs, gradient_accumulation, expected
):
    """12 batches an epoch."""
    config = TrainingConfig(
        num_train_steps=num_train_steps, num_epochs=num_epochs, gradient_accumulation=gradient_accumulation
    )
    reader = rows_reader(tmp_path)
    with contextlib.closing(reader.train(seed=0, num_epochs=num_epochs)) as batches:
        positions = [placed.position for placed in itertools.islice(batches, expected * config.micro_batches)]
    assert find_last_step(config, reader, Progress.start(4)) == expected
    for step, position in enumerate(positions[config.micro_batches - 1 :: config.micro_batches], start=1):
        assert find_last_step(config, reader, Progress(step, position, {})) == expected


def test_a_run_that_has_gone_further_ends_where_it_is(tmp_path):
    progress = Progress(9, Position(0, (36,) * 4), {})
    assert find_last_step(TrainingConfig(num_train_steps=5), rows_reader(tmp_path), progress) == 9
