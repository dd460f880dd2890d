"""Saving beside the training: what is saved is the state at the call, one save at a time, and what a failure does."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from common.checkpointing.directory import complete_steps
from common.checkpointing.reader import read_tensors
from common.checkpointing.retention import CheckpointRetention
from common.reader.order import Position
from core.checkpoints.saver import Saver
from core.run.state import Progress
from tests.support.faults import full_disk
from tests.support.toy import ALONE, ToyModel, toy_batch, toy_step


class SlowPolicy(CheckpointRetention):
    """Whose save ends, in its thread, when it is let go."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, every_n=1, max_to_keep=None)
        self.let_go = threading.Event()

    def rotate(self, saved: int) -> None:  # noqa: ARG002
        assert self.let_go.wait(60)


class Run:
    """A model that is trained and saved."""

    def __init__(self, policy: CheckpointRetention, sync: Callable[[], None] = lambda: None) -> None:
        self.model = ToyModel()
        optimizer = torch.optim.Adam(self.model.parameters(), lr=0.1)
        self.train_step = toy_step(self.model, optimizer=optimizer)
        self.saver = Saver(policy, {}, ALONE, self.model, optimizer, self.train_step.scaler, None, 0, sync)
        self.step = 0

    def train(self) -> None:
        self.step += 1
        self.train_step([toy_batch(8, seed=self.step)], self.step)

    def save(self) -> None:
        self.saver.save(Progress(self.step, Position.start(1), {}))

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: tensor.clone() for name, tensor in self.model.state_dict().items()}


@pytest.fixture
def policy(tmp_path: Path) -> CheckpointRetention:
    return CheckpointRetention(tmp_path, every_n=1, max_to_keep=None)


def assert_saved(path: Path, weights: dict[str, torch.Tensor]) -> None:
    saved = read_tensors(path, "model.")
    assert saved.keys() == weights.keys()
    assert all(torch.equal(saved[name], weights[name]) for name in weights)


def test_each_checkpoint_holds_the_state_at_its_save(tmp_path: Path, policy: CheckpointRetention) -> None:
    """Though training goes on at once, in the same tensors."""
    run = Run(policy)
    expected = {}
    for _ in range(4):
        run.train()
        expected[run.step] = run.weights()
        run.save()
        run.train()
    assert run.saver.wait()
    assert complete_steps(tmp_path) == [1, 3, 5, 7]
    for step, weights in expected.items():
        assert_saved(tmp_path / str(step), weights)


def test_training_goes_on_during_a_save_and_the_next_save_waits_for_it(tmp_path: Path) -> None:
    policy = SlowPolicy(tmp_path)
    run = Run(policy)
    run.train()
    run.save()
    run.train()  # the save has not ended
    entered, ended = threading.Event(), threading.Event()

    def save_again() -> None:
        entered.set()
        run.save()
        ended.set()

    second = threading.Thread(target=save_again)
    second.start()
    assert entered.wait(60)
    assert not ended.wait(0.3)
    assert complete_steps(tmp_path) in ([], [1])
    policy.let_go.set()
    second.join(60)
    assert run.saver.wait()
    assert complete_steps(tmp_path) == [1, 2]


def test_what_a_resume_needs_beside_a_checkpoint_is_durable_before_it(
    tmp_path: Path, policy: CheckpointRetention
) -> None:
    there: list[list[int]] = []
    run = Run(policy, lambda: there.append(complete_steps(tmp_path)))
    for _ in range(2):
        run.train()
        run.save()
    assert run.saver.wait()
    assert there == [[], [1]]


def test_a_step_is_saved_once(tmp_path: Path, policy: CheckpointRetention) -> None:
    run = Run(policy)
    run.train()
    run.save()
    assert run.saver.wait()
    written = (tmp_path / "1/manifest.json").stat()
    run.save()
    assert run.saver.wait()
    assert (tmp_path / "1/manifest.json").stat() == written


def test_a_failed_save_is_one_error_and_may_be_tried_again(
    tmp_path: Path, policy: CheckpointRetention, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run(policy)
    run.train()
    with full_disk(300):
        run.save()
        assert not run.saver.wait()
    assert not run.saver.wait()
    (record,) = [record for record in caplog.records if record.name == "core.checkpoints.saver"]
    assert record.message.startswith(f"{tmp_path / '1'}: cannot write the checkpoint: File too large")
    assert complete_steps(tmp_path) == []
    run.save()
    assert run.saver.wait()
    assert_saved(tmp_path / "1", run.weights())


def test_an_unexpected_failure_is_raised_where_training_waits(tmp_path: Path) -> None:
    class Broken(CheckpointRetention):
        @property
        def root(self) -> Path:
            raise ZeroDivisionError

        @root.setter
        def root(self, _: Path) -> None:
            pass

    run = Run(Broken(tmp_path, every_n=1, max_to_keep=None))
    run.train()
    run.save()
    with pytest.raises(ZeroDivisionError):
        run.saver.wait()
