"""Faults of the file system during a run: training continues, each failed save logs one error, and older checkpoints
stay.
"""

import contextlib
import logging
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from common.checkpointing.directory import complete_steps
from common.checkpointing.reader import read_tensors
from common.checkpointing.retention import CheckpointRetention
from common.optimizers.config import LearningRate
from common.optimizers.learning_rate import ParameterGroupScheduler
from core.config.training import JobConfig, TrainingConfig
from core.custom_training_loop import Outcome, train
from tests.support.faults import forbidden
from tests.support.toy import ALONE, ToyModel, rows_reader


class Faults(contextlib.ExitStack):
    """Injects a fault at step 3, once the checkpoint of step 2 is saved and rotated."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self._rotated = threading.Event()
        rotate = CheckpointRetention.rotate

        def rotate_and_report(retention: CheckpointRetention, saved: int) -> None:
            rotate(retention, saved)
            self._rotated.set()

        monkeypatch.setattr(CheckpointRetention, "rotate", rotate_and_report)

    def run(self, save_dir: Path, fault: Callable[[], None] | None = None) -> Outcome:
        """Train 8 steps with a checkpoint every 2."""
        training = TrainingConfig(
            save_dir=str(save_dir),
            num_train_steps=8,
            checkpoint_every_n=2,
            checkpoint_max_to_keep=2,
            train_log_every_n=3,
        )
        model = ToyModel()
        optimizer = torch.optim.Adam([{"params": list(model.parameters()), "name": "all"}], fused=True)
        rates = ParameterGroupScheduler(optimizer, [LearningRate(constant=0.01)])
        faults = [fault] if fault is not None else []

        def extra_metrics() -> dict[str, float]:
            if faults:
                assert self._rotated.wait(60)
                faults.pop()()
            return {}

        reader = rows_reader(save_dir.parent)
        config = JobConfig(training=training)
        return train(config, model, optimizer, rates, reader, {}, ALONE, extra_metrics=extra_metrics)


@pytest.fixture
def save_dir(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[Faults]:
    caplog.set_level(logging.INFO)
    with Faults(monkeypatch) as stack:
        yield stack


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]


def assert_each_save_failed(caplog: pytest.LogCaptureFixture, root: Path, cause: str) -> list[str]:
    """Check that each save since the fault logged one error, and return the text after the cause."""
    messages = errors(caplog)
    assert len(messages) == 3
    for message, step in zip(messages, (4, 6, 8), strict=True):
        assert message.startswith(f"{root}/{step}: ")
        assert f"{cause}: {root}/.writing-{step}" in message
    return [message.split(cause)[1] for message in messages]


def test_a_directory_of_checkpoints_that_becomes_read_only(
    save_dir: Path, faults: Faults, caplog: pytest.LogCaptureFixture
) -> None:
    root = save_dir / "checkpoints"
    outcome = faults.run(save_dir, lambda: faults.enter_context(forbidden(root)))
    assert (outcome.step, outcome.exit_status, outcome.checkpoint) == (8, 1, root / "2")
    assert all("[2]" in rest for rest in assert_each_save_failed(caplog, root, "Permission denied"))
    assert read_tensors(root / "2")
    faults.close()
    assert faults.run(save_dir).exit_status == 0
    assert complete_steps(root) == [6, 8]


def test_a_save_dir_that_becomes_inaccessible(save_dir: Path, faults: Faults, caplog: pytest.LogCaptureFixture) -> None:
    root = save_dir / "checkpoints"
    outcome = faults.run(save_dir, lambda: faults.enter_context(forbidden(save_dir, 0)))
    assert (outcome.step, outcome.exit_status, outcome.checkpoint) == (8, 1, None)
    for rest in assert_each_save_failed(caplog, root, "Permission denied"):
        assert "[2]" not in rest
        assert "none" not in rest, "which checkpoints there are is unknown"


def test_a_file_in_place_of_the_directory_of_checkpoints(
    save_dir: Path, faults: Faults, caplog: pytest.LogCaptureFixture
) -> None:
    root = save_dir / "checkpoints"

    def replace() -> None:
        root.rename(save_dir / "elsewhere")
        root.write_text("")

    outcome = faults.run(save_dir, replace)
    assert (outcome.step, outcome.exit_status, outcome.checkpoint) == (8, 1, None)
    assert all("none" in rest for rest in assert_each_save_failed(caplog, root, "Not a directory"))
    assert read_tensors(save_dir / "elsewhere/2")


def test_a_directory_of_checkpoints_that_was_removed_is_created_again(
    save_dir: Path, faults: Faults, caplog: pytest.LogCaptureFixture
) -> None:
    outcome = faults.run(save_dir, lambda: shutil.rmtree(save_dir / "checkpoints"))
    assert (outcome.step, outcome.exit_status) == (8, 0)
    assert errors(caplog) == []
    assert complete_steps(save_dir / "checkpoints") == [6, 8]
