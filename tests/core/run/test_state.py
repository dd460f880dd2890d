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
from common.errors import ConfigError
from common.reader.order import Position
from core.config.training import TrainingConfig
from core.run.state import TrainingState, check_run_length, find_last_step
from tests.support.toy import rows_reader

STATE = TrainingState(
    identity={"runtime": {"seed": 3}},
    position=Position(2, (3, 4)),
    step=7,
    window={"loss_sum": 0.1 + 0.2, "skipped": 1.0, "steps": 2.0},
    skipped_in_a_row=5,
    scaler={"scale": 8.0},
    averaged_updates=6,
    early_stopping={"best": 0.1, "misses": 2},
    tracker_run_id="run-1",
    config={"train_data": {"schema": "schema.json"}},
    inputs={"schema.json": "0a-schema.json"},
)


def saved(root: Path, step: int, values: dict[str, Any]) -> CheckpointReader:
    """Return a checkpoint that holds `values` next to a tensor."""
    return CheckpointReader(write_checkpoint(root, step, {"a": torch.ones(1)}, values))


@pytest.mark.parametrize("state", [STATE, TrainingState({}, Position.start(2))])
def test_a_checkpoint_holds_every_field_to_the_last_bit(tmp_path: Path, state: TrainingState) -> None:
    with saved(tmp_path, 1, state.to_json()) as checkpoint:
        assert TrainingState.from_checkpoint(checkpoint) == state


def test_the_names_in_a_checkpoint_stay_the_same() -> None:
    """A later version of the program must read the checkpoints of this one."""
    assert json.loads(json.dumps(STATE.to_json())) == {
        "progress": {
            "step": 7,
            "position": {"epoch": 2, "cursors": [3, 4]},
            "window": {"loss_sum": 0.1 + 0.2, "skipped": 1.0, "steps": 2.0},
            "nonfinite_steps": 5,
            "averaged_updates": 6,
        },
        "scaler": {"scale": 8.0},
        "early_stopping": {"best": 0.1, "misses": 2},
        "identity": {"runtime": {"seed": 3}},
        "tracker_run_id": "run-1",
        "config": {"train_data": {"schema": "schema.json"}},
        "inputs": {"schema.json": "0a-schema.json"},
    }


def test_json_values_are_a_copy() -> None:
    state = TrainingState({}, Position.start(1), window={"steps": 1.0})
    values = state.to_json()
    state.step, state.window["steps"], state.scaler["scale"] = 9, 9.0, 9.0
    assert values == TrainingState({}, Position.start(1), window={"steps": 1.0}).to_json()


def test_a_fresh_run_has_done_nothing() -> None:
    state = TrainingState({}, Position.start(3))
    assert (state.step, state.position) == (0, Position(0, (0, 0, 0)))
    assert (state.window, state.skipped_in_a_row, state.scaler, state.tracker_run_id) == ({}, 0, {}, None)


def test_a_checkpoint_of_an_older_version_is_readable(tmp_path: Path) -> None:
    """Older versions of the program did not count skipped steps, and had no averages and no early stopping."""
    values = STATE.to_json()
    del values["progress"]["averaged_updates"]
    del values["progress"]["nonfinite_steps"]
    del values["early_stopping"]
    with saved(tmp_path, 1, values) as checkpoint:
        state = TrainingState.from_checkpoint(checkpoint)
    assert (state.skipped_in_a_row, state.averaged_updates, state.early_stopping) == (0, 0, {})


@pytest.mark.parametrize("change", [{"progress": {}}, {"progress": 3}, {"scaler": None}, {"identity": 1}])
def test_the_state_of_another_program_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    with (
        saved(tmp_path, 1, STATE.to_json() | change) as checkpoint,
        pytest.raises(CheckpointError, match=rf"^{checkpoint.path}: .*not that of a training run"),
    ):
        TrainingState.from_checkpoint(checkpoint)


@pytest.mark.parametrize(
    ("num_train_steps", "num_epochs", "gradient_accumulation", "expected"),
    [(10, None, None, 10), (10, 1, None, 10), (1000, 1, None, 12), (1000, 2, 5, 4), (1000, 2, None, 24), (3, 1, 5, 2)],
)
def test_the_last_step_is_the_same_from_any_step(
    tmp_path: Path, num_train_steps: int, num_epochs: int | None, gradient_accumulation: int | None, expected: int
) -> None:
    """An epoch has 12 batches."""
    config = TrainingConfig(
        num_train_steps=num_train_steps, num_epochs=num_epochs, gradient_accumulation=gradient_accumulation
    )
    reader = rows_reader(tmp_path)
    with contextlib.closing(reader.train(seed=0, num_epochs=num_epochs)) as batches:
        positions = [item.position for item in itertools.islice(batches, expected * config.num_micro_batches)]
    assert find_last_step(config, reader, TrainingState({}, Position.start(4))) == expected
    for step, position in enumerate(positions[config.num_micro_batches - 1 :: config.num_micro_batches], start=1):
        assert find_last_step(config, reader, TrainingState({}, position, step)) == expected


def test_a_run_beyond_num_train_steps_ends_where_it_is(tmp_path: Path) -> None:
    state = TrainingState({}, Position(0, (36,) * 4), step=9)
    assert find_last_step(TrainingConfig(num_train_steps=5), rows_reader(tmp_path), state) == 9


def test_epochs_without_data_for_one_step_are_an_error(tmp_path: Path) -> None:
    reader = rows_reader(tmp_path)
    available = reader.batches_per_epoch
    check_run_length(TrainingConfig(gradient_accumulation=available), reader)
    check_run_length(TrainingConfig(gradient_accumulation=available + 1, num_epochs=2), reader)
    check_run_length(TrainingConfig(gradient_accumulation=available + 1, num_epochs=None), reader)
    with pytest.raises(ConfigError, match=rf"is {available + 1}.* gives only {available} batches"):
        check_run_length(TrainingConfig(gradient_accumulation=available + 1), reader)
