"""What the file system refuses amid a run: training goes on, each failed save is one error, older checkpoints stay."""

import contextlib
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from common.checkpointing.directory import complete_steps
from common.checkpointing.reader import read_tensors
from common.optimizers.config import LearningRate
from common.optimizers.learning_rate import ParameterGroupScheduler
from core.config.training import JobConfig, TrainingConfig
from core.custom_training_loop import Outcome, train
from tests.support.faults import forbidden
from tests.support.toy import ALONE, ToyModel, rows_reader


def run(save_dir: Path, caplog: pytest.LogCaptureFixture, fault: Callable[[], None]) -> Outcome:
    """8 steps, a checkpoint every 2; the fault comes at step 3, when that of step 2 is saved."""
    training = TrainingConfig(
        save_dir=str(save_dir), num_train_steps=8, checkpoint_every_n=2, checkpoint_max_to_keep=2, train_log_every_n=3
    )
    model = ToyModel()
    optimizer = torch.optim.Adam([{"params": list(model.parameters()), "name": "all"}], fused=True)
    rates = ParameterGroupScheduler(optimizer, [LearningRate(constant=0.01)])
    faults = [fault]
    caplog.set_level(logging.INFO)

    def extra_metrics() -> dict[str, float]:
        if faults:
            while f"saved {save_dir}/checkpoints/2" not in caplog.messages:
                pass
            faults.pop()()
        return {}

    reader = rows_reader(save_dir.parent)
    return train(JobConfig(training=training), model, optimizer, rates, reader, {}, ALONE, extra_metrics=extra_metrics)


@pytest.fixture
def save_dir(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def faults() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]


def test_a_directory_that_is_read_only_from_now_on(
    save_dir: Path, faults: contextlib.ExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    root = save_dir / "checkpoints"
    outcome = run(save_dir, caplog, lambda: faults.enter_context(forbidden(root)))
    assert (outcome.step, outcome.exit_status, outcome.checkpoint) == (8, 1, root / "2")
    assert errors(caplog) == [
        f"{root}/{step}: cannot write the checkpoint: Permission denied: {root}/.writing-{step}. "
        "Complete checkpoints: [2]"
        for step in (4, 6, 8)
    ]
    assert read_tensors(root / "2")
    faults.close()
    assert run(save_dir, caplog, lambda: None).exit_status == 0
    assert complete_steps(root) == [6, 8]


def test_a_save_dir_that_is_closed_from_now_on(
    save_dir: Path, faults: contextlib.ExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    root = save_dir / "checkpoints"
    outcome = run(save_dir, caplog, lambda: faults.enter_context(forbidden(save_dir, 0)))
    assert (outcome.step, outcome.exit_status, outcome.checkpoint) == (8, 1, None)
    assert errors(caplog) == [
        f"{root}/{step}: cannot write the checkpoint: Permission denied: {root}/.writing-{step}. "
        "Complete checkpoints: unknown (cannot read the directory)"
        for step in (4, 6, 8)
    ]


def test_a_file_in_the_place_of_the_checkpoints(save_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = save_dir / "checkpoints"

    def replace() -> None:
        root.rename(save_dir / "elsewhere")
        root.write_text("")

    outcome = run(save_dir, caplog, replace)
    assert (outcome.step, outcome.exit_status, outcome.checkpoint) == (8, 1, None)
    assert errors(caplog) == [
        f"{root}/{step}: cannot write the checkpoint: Not a directory: {root}/.writing-{step}. "
        "Complete checkpoints: none"
        for step in (4, 6, 8)
    ]
    assert read_tensors(save_dir / "elsewhere/2")


def test_checkpoints_that_were_removed_are_made_again(save_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    outcome = run(save_dir, caplog, lambda: shutil.rmtree(save_dir / "checkpoints"))
    assert (outcome.step, outcome.exit_status) == (8, 0)
    assert errors(caplog) == []
    assert complete_steps(save_dir / "checkpoints") == [6, 8]
