"""The start of a run: which one is found, and what it restores."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from common.checkpointing.directory import complete_steps, delete_unless_held
from common.checkpointing.manifest import CheckpointError, DamagedCheckpointError, NoCheckpointError
from common.checkpointing.reader import CheckpointReader
from common.errors import UserError
from common.reader.order import Position
from core.checkpoints.configured_retention import configured_retention
from core.custom_training_loop import train
from core.run import start as start_module
from core.run.components import TrainingComponents
from core.run.directory import RunDirectory
from core.run.launch import Overwrite
from core.run.start import FreshRun, Resume, Start, WarmStart, find_overwrite, find_start
from core.run.state import TrainingState
from core.run.tensors import training_tensors
from tests.support.faults import flip_a_bit
from tests.support.torch_checkpoint import rewrite_in_torch_format
from tests.support.toy import ToyModel, toy_components


def find(components: TrainingComponents) -> Start:
    directory = RunDirectory(components.config.training.save_dir)
    retention = configured_retention(components.config.training, directory)
    return find_start(components, directory, retention, overwrites=components.overwrite_save_dir)


def restore(components: TrainingComponents) -> tuple[type[Start], TrainingState]:
    """Find the start, restore what it begins with, and close it."""
    with find(components) as start:
        return type(start), start.restore_on_all_ranks(components)


def tensors(components: TrainingComponents) -> dict[str, torch.Tensor]:
    found = training_tensors(components.model, components.optimizer)
    return {name: tensor.clone() for name, tensor in found.items()}


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def trained(directory: Path, **options: Any) -> TrainingComponents:
    """Train a run, and return its components as they are at the end."""
    directory.mkdir(exist_ok=True)
    components = toy_components(directory, **options)
    train(
        components.config,
        components.model,
        components.optimizer,
        components.learning_rates,
        components.train_reader,
        {},
        components.world,
    )
    return components


def initial_weights() -> ToyModel:
    """Return a model that differs from a trained one and from a default one."""
    module = ToyModel(dropout=0.3, batch_norm=True)
    torch.nn.init.constant_(module.out.weight, 0.125)
    return module


@pytest.fixture
def calls() -> list[str]:
    return []


def test_without_a_checkpoint_a_run_is_fresh(tmp_path: Path, calls: list[str]) -> None:
    components = toy_components(tmp_path, initial_weights(), on_fresh_run=lambda: calls.append("on_fresh_run"))
    before = tensors(components)
    kind, state = restore(components)
    assert kind is FreshRun
    assert not kind.is_resumed
    assert state == TrainingState(components.identity, Position.start(4))
    assert calls == ["on_fresh_run"]
    assert_equal(tensors(components), before)


def test_a_fresh_run_needs_no_initialization_by_the_project(tmp_path: Path) -> None:
    kind, state = restore(toy_components(tmp_path, on_fresh_run=None))
    assert (kind, state.step) == (FreshRun, 0)


def test_a_resume_restores_tensors_and_state_of_the_newest_checkpoint(tmp_path: Path, calls: list[str]) -> None:
    expected = tensors(trained(tmp_path))
    components = toy_components(tmp_path, initial_weights(), on_fresh_run=lambda: calls.append("on_fresh_run"))
    kind, state = restore(components)
    assert kind is Resume
    assert kind.is_resumed
    with CheckpointReader(tmp_path / "run/checkpoints/10") as checkpoint:
        assert state == TrainingState.from_checkpoint(checkpoint)
    assert (state.step, state.position, state.identity) == (10, Position(0, (40,) * 4), components.identity)
    assert_equal(tensors(components), expected)
    assert calls == []


@pytest.mark.parametrize("file", ["state.json", "tensors.json", "tensors-0.bin"])
def test_a_resume_skips_damaged_checkpoints(tmp_path: Path, caplog: pytest.LogCaptureFixture, file: str) -> None:
    trained(tmp_path)
    checkpoints = tmp_path / "run/checkpoints"
    with CheckpointReader(checkpoints / "8") as checkpoint:
        expected = checkpoint.tensors()
    flip_a_bit(checkpoints / "10" / file)
    components = toy_components(tmp_path)
    kind, state = restore(components)
    assert (kind, state.step) == (Resume, 8)
    (message,) = [record.getMessage() for record in caplog.records if record.name == "common.checkpointing.retention"]
    assert message.startswith(f"{checkpoints}/10/{file}: damaged checkpoint: ")
    assert_equal(tensors(components), expected)
    for step in (10, 8, 4):
        assert delete_unless_held(checkpoints / str(step)), "it is closed"


@pytest.mark.parametrize("file", ["state.json", "tensors-0.bin"])
def test_a_run_with_only_damaged_checkpoints_is_an_error(tmp_path: Path, file: str) -> None:
    trained(tmp_path)
    for step in (4, 8, 10):
        flip_a_bit(tmp_path / f"run/checkpoints/{step}" / file)
    with pytest.raises(CheckpointError, match=rf"{tmp_path}/run/checkpoints: .*10, 8, 4.*--overwrite_save_dir"):
        restore(toy_components(tmp_path))
    assert complete_steps(tmp_path / "run/checkpoints") == [4, 8, 10]


def test_a_damaged_initial_checkpoint_is_an_error(tmp_path: Path) -> None:
    trained(tmp_path / "other")
    flip_a_bit(tmp_path / "other/run/checkpoints/10/tensors-0.bin", 0)
    with pytest.raises(DamagedCheckpointError, match=rf"^{tmp_path}/other/run/checkpoints/10/tensors-0\.bin: "):
        restore(toy_components(tmp_path, initial_checkpoint_dir=str(tmp_path / "other/run")))


def test_a_resume_from_the_earlier_format_continues_bit_for_bit_and_saves_in_the_new_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "new").mkdir()
    expected = tensors(trained(tmp_path / "new"))
    (tmp_path / "old").mkdir()
    trained(tmp_path / "old", num_train_steps=8)
    checkpoints = tmp_path / "old/run/checkpoints"
    for step in (4, 8):
        rewrite_in_torch_format(checkpoints / str(step))
    caplog.set_level(logging.INFO)
    found = tensors(trained(tmp_path / "old"))
    assert f"continuing after step 8 from {checkpoints}/8" in caplog.messages
    assert_equal(found, expected)
    assert (checkpoints / "10/tensors.json").exists()
    assert not (checkpoints / "10/.metadata").exists()
    caplog.clear()
    flip_a_bit(checkpoints / "10/tensors-0.bin")
    flip_a_bit(checkpoints / "8/__0_0.distcp")
    assert restore(toy_components(tmp_path / "old"))[1].step == 4


def test_a_resume_of_another_run_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    trained(tmp_path)
    components = toy_components(tmp_path, initial_weights(), max_grad_norm=2.0)
    before = tensors(components)
    with pytest.raises(UserError, match=rf"save_dir {tmp_path}/run .*\n  training\.max_grad_norm: null .* 2\.0"):
        restore(components)
    assert_equal(tensors(components), before)
    assert delete_unless_held(tmp_path / "run/checkpoints/10"), "the checkpoint is closed"


def test_another_environment_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    trained(tmp_path)
    caplog.set_level(logging.INFO)
    restore(toy_components(tmp_path))
    assert not [message for message in caplog.messages if " before, " in message]
    environment = {"world_size": 4, "device": "cpu"}
    monkeypatch.setattr(start_module, "run_environment", lambda _: environment)
    restore(toy_components(tmp_path))
    (message,) = [message for message in caplog.messages if " before, " in message]
    assert message.startswith("world_size: 1 before, 4 now")


@pytest.mark.parametrize(("initial", "step"), [("run", 10), ("run/checkpoints", 10), ("run/checkpoints/8", 8)])
def test_a_warm_start_loads_only_the_weights(tmp_path: Path, calls: list[str], initial: str, step: int) -> None:
    trained(tmp_path / "other")
    with CheckpointReader(tmp_path / "other/run/checkpoints" / str(step)) as checkpoint:
        expected = checkpoint.tensors("model.")
    components = toy_components(
        tmp_path,
        initial_weights(),
        initial_checkpoint_dir=str(tmp_path / "other" / initial),
        on_fresh_run=lambda: calls.append("on_fresh_run"),
    )
    kind, state = restore(components)
    assert kind is WarmStart
    assert not kind.is_resumed
    assert state == TrainingState(components.identity, Position.start(4))
    assert_equal(dict(components.model.module.state_dict()), expected)
    assert not components.optimizer.state
    assert calls == []


def test_a_warm_start_may_differ_from_the_other_run(tmp_path: Path) -> None:
    trained(tmp_path / "other")
    components = toy_components(tmp_path, initial_checkpoint_dir=str(tmp_path / "other/run"), max_grad_norm=2.0)
    assert restore(components)[0] is WarmStart


def test_a_warm_start_from_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NoCheckpointError, match=f"{tmp_path}/other"):
        find(toy_components(tmp_path, initial_checkpoint_dir=str(tmp_path / "other")))


def test_a_warm_start_from_another_model_is_an_error(tmp_path: Path) -> None:
    trained(tmp_path / "other", module=ToyModel())
    with pytest.raises(CheckpointError, match=r"norm\.weight: only in the model"):
        restore(toy_components(tmp_path, initial_checkpoint_dir=str(tmp_path / "other/run")))


def test_a_resume_takes_precedence_over_a_warm_start(tmp_path: Path) -> None:
    trained(tmp_path)
    assert restore(toy_components(tmp_path, initial_checkpoint_dir=str(tmp_path / "nowhere")))[0] is Resume


def test_overwriting_ignores_the_checkpoints_of_the_run(tmp_path: Path) -> None:
    trained(tmp_path)
    assert restore(toy_components(tmp_path, overwrite_save_dir=True))[0] is FreshRun
    trained(tmp_path / "other")
    warm = toy_components(tmp_path, overwrite_save_dir=True, initial_checkpoint_dir=str(tmp_path / "other/run"))
    assert restore(warm)[0] is WarmStart


@pytest.mark.parametrize("is_warm", [False, True])
def test_no_rotation_deletes_the_checkpoint_until_the_start_is_closed(tmp_path: Path, is_warm: bool) -> None:
    trained(tmp_path / "other")
    begun = tmp_path if is_warm else tmp_path / "other"
    checkpoint = tmp_path / "other/run/checkpoints/10"
    start = find(toy_components(begun, initial_checkpoint_dir=str(tmp_path / "other/run") if is_warm else None))
    with start:
        assert not delete_unless_held(checkpoint)
    assert delete_unless_held(checkpoint)


def test_starting_over_acts_once_per_launch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "first")
    components = trained(tmp_path, overwrite_save_dir=True)
    directory = RunDirectory(components.config.training.save_dir)
    due = find_overwrite(components, directory)  # trained() does not pass the option on
    assert due.is_due
    directory.begin("", is_resumed=False, overwrite=due)
    assert not find_overwrite(components, directory).is_due
    assert "--overwrite_save_dir has no effect: this launch (torchrun's id first" in caplog.text
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "second")
    assert find_overwrite(components, directory).is_due
    assert find_overwrite(toy_components(tmp_path), directory) == Overwrite()


def test_a_run_that_starts_over_does_not_start_from_what_it_deletes(tmp_path: Path) -> None:
    """A restart before its first checkpoint would find neither."""
    trained(tmp_path)
    for initial in ("run", "run/checkpoints/8"):
        components = toy_components(tmp_path, overwrite_save_dir=True, initial_checkpoint_dir=str(tmp_path / initial))
        with pytest.raises(UserError, match=r"training\.initial_checkpoint_dir: .*is in the save_dir of this run"):
            find(components)
