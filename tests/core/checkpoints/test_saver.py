"""Saves in the background: a checkpoint holds the state at the call, and one save runs at a time."""

import math
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from common.checkpointing.directory import complete_steps
from common.checkpointing.reader import CheckpointReader, read_tensors
from common.checkpointing.retention import CheckpointRetention
from common.reader.order import Position
from core.checkpoints.saver import Saver
from core.run.nonfinite import NonfiniteStateError
from core.run.state import TrainingState
from tests.support.faults import full_disk
from tests.support.toy import ALONE, ToyModel, dense, toy_batch, toy_step


class SlowRetention(CheckpointRetention):
    """Lets a save end only once it is released."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, every_n=1, max_to_keep=None)
        self.is_rotating = threading.Event()
        self.is_released = threading.Event()

    def rotate(self, saved: int) -> None:  # noqa: ARG002
        self.is_rotating.set()
        assert self.is_released.wait(60)


class Run:
    """A model that is trained and saved."""

    def __init__(
        self, retention: CheckpointRetention, sync: Callable[[], None] = lambda: None, saved_step: int = 0
    ) -> None:
        model = ToyModel()
        self.model = dense(model)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        self.train_step = toy_step(self.model, optimizer=optimizer)
        self.saver = Saver(retention, self.model, optimizer, ALONE, saved_step, sync)
        self.state = TrainingState({"model": "toy"}, Position.start(1), step=saved_step)

    def train(self) -> None:
        self.state.step += 1
        self.train_step([toy_batch(8, seed=self.state.step)], self.state.step)

    def save(self) -> None:
        self.saver.save(self.state)

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: tensor.clone() for name, tensor in self.model.module.state_dict().items()}


@pytest.fixture
def retention(tmp_path: Path) -> CheckpointRetention:
    return CheckpointRetention(tmp_path, every_n=1, max_to_keep=None)


def assert_saved(path: Path, weights: dict[str, torch.Tensor]) -> None:
    saved = read_tensors(path, "model.")
    assert saved.keys() == weights.keys()
    assert all(torch.equal(saved[name], weights[name]) for name in weights)


def test_each_checkpoint_holds_the_state_at_its_save(tmp_path: Path, retention: CheckpointRetention) -> None:
    """Training continues in the same tensors, and with the same state, while a save is in progress."""
    run = Run(retention)
    expected = {}
    for _ in range(4):
        run.train()
        run.state.window["steps"] = float(run.state.step)
        expected[run.state.step] = run.weights()
        run.save()
        run.train()
        run.state.window["steps"] = -1.0
    assert run.saver.wait()
    assert complete_steps(tmp_path) == [1, 3, 5, 7]
    for step, weights in expected.items():
        assert_saved(tmp_path / str(step), weights)
        with CheckpointReader(tmp_path / str(step)) as checkpoint:
            state = TrainingState.from_checkpoint(checkpoint)
        assert (state.step, state.identity, state.window) == (step, {"model": "toy"}, {"steps": float(step)})


def test_a_checkpoint_records_its_environment(tmp_path: Path, retention: CheckpointRetention) -> None:
    run = Run(retention)
    run.train()
    run.save()
    assert run.saver.wait()
    with CheckpointReader(tmp_path / "1") as checkpoint:
        provenance = checkpoint.provenance
    assert (provenance["world_size"], provenance["device"], provenance["torch"]) == (1, "cpu", torch.__version__)
    assert len(provenance["config_digest"]) == 32


def test_training_continues_during_a_save_and_the_next_save_waits_for_it(tmp_path: Path) -> None:
    retention = SlowRetention(tmp_path)
    run = Run(retention)
    run.train()
    run.save()
    run.train()  # the save has not ended
    assert retention.is_rotating.wait(60)
    has_entered, has_ended = threading.Event(), threading.Event()

    def save_again() -> None:
        has_entered.set()
        run.save()
        has_ended.set()

    second = threading.Thread(target=save_again)
    second.start()
    assert has_entered.wait(60)
    assert not has_ended.wait(0.3)
    assert complete_steps(tmp_path) == [1]
    retention.is_released.set()
    second.join(60)
    assert run.saver.wait()
    assert complete_steps(tmp_path) == [1, 2]


def test_close_waits_for_the_save_in_progress(tmp_path: Path, retention: CheckpointRetention) -> None:
    run = Run(retention)
    run.saver.close()
    run.train()
    run.save()
    run.saver.close()
    assert complete_steps(tmp_path) == [1]


def test_sync_is_called_before_a_checkpoint_appears(tmp_path: Path, retention: CheckpointRetention) -> None:
    visible: list[list[int]] = []
    run = Run(retention, lambda: visible.append(complete_steps(tmp_path)))
    for _ in range(2):
        run.train()
        run.save()
    assert run.saver.wait()
    assert visible == [[], [1]]


def test_a_step_is_saved_once(tmp_path: Path, retention: CheckpointRetention) -> None:
    run = Run(retention)
    run.train()
    run.save()
    assert run.saver.wait()
    written = (tmp_path / "1/manifest.json").stat()
    run.save()
    assert run.saver.wait()
    assert (tmp_path / "1/manifest.json").stat() == written


def test_the_step_of_a_resume_is_not_saved_again(tmp_path: Path, retention: CheckpointRetention) -> None:
    run = Run(retention, saved_step=3)
    run.save()
    assert run.saver.wait()
    assert complete_steps(tmp_path) == []


def test_a_failed_save_logs_one_error_and_can_be_repeated(
    tmp_path: Path, retention: CheckpointRetention, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run(retention)
    run.train()
    with full_disk(300):
        run.save()
        assert not run.saver.wait()
    assert not run.saver.wait()
    (record,) = [record for record in caplog.records if record.name == "core.checkpoints.saver"]
    assert record.levelname == "ERROR"
    assert record.message.startswith(f"{tmp_path / '1'}: ")
    assert "File too large" in record.message
    assert complete_steps(tmp_path) == []
    run.save()
    assert run.saver.wait()
    assert_saved(tmp_path / "1", run.weights())


def test_an_unexpected_failure_is_raised_where_training_waits(tmp_path: Path) -> None:
    class BrokenRetention(CheckpointRetention):
        @property
        def root(self) -> Path:
            raise ZeroDivisionError

        @root.setter
        def root(self, _: Path) -> None:
            pass

    run = Run(BrokenRetention(tmp_path, every_n=1, max_to_keep=None))
    run.train()
    run.save()
    with pytest.raises(ZeroDivisionError):
        run.saver.wait()


def test_a_nonfinite_copy_is_not_saved_and_reported_by_the_next_save(
    tmp_path: Path, retention: CheckpointRetention
) -> None:
    run = Run(retention)
    run.train()
    run.save()
    run.train()
    weight = run.model.module.get_parameter("out.weight")
    good = weight.detach().clone()
    with torch.no_grad():
        weight[1, 2] = math.inf
    run.saver.save(run.state, "batch 2")
    with torch.no_grad():
        weight.copy_(good)  # the copy counts, and not what training has made of the model
    run.train()
    with pytest.raises(NonfiniteStateError) as raised:
        run.save()
    error = raised.value
    assert (error.step, error.batch, error.found) == (2, "batch 2", "parameter out.weight[1, 2]: inf")
    with pytest.raises(NonfiniteStateError):
        run.saver.wait()
    assert complete_steps(tmp_path) == [1]
    assert [path.name for path in tmp_path.iterdir()] == ["1"]
