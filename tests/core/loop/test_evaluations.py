"""Evaluations decide when training stops, also over restarts after a kill at any moment."""

import itertools
import logging
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from common.checkpointing.reader import read_state, read_tensors
from tests.support.scripted_run import PARTITIONS, ScriptedRun


@pytest.fixture
def run(tmp_path: Path) -> ScriptedRun:
    return ScriptedRun(tmp_path / "tested")


def evaluated(*steps: int) -> list[tuple[int, str]]:
    return list(itertools.product(steps, PARTITIONS))


def assert_equal_files(run: ScriptedRun, other: ScriptedRun) -> None:
    """Check that two runs have the same checkpoints and measurements, bit for bit."""
    assert run.steps() == other.steps()
    for step in run.steps():
        found, expected = (read_tensors(each.save_dir / f"checkpoints/{step}") for each in (run, other))
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
        states = [read_state(each.save_dir / f"checkpoints/{step}") for each in (run, other)]
        assert states[0]["early_stopping"] == states[1]["early_stopping"]
    measured = [[(m.step, m.mode, m.partition, m.metrics) for m in each.measurements()] for each in (run, other)]
    assert measured[0] == measured[1]


def test_a_run_stops_after_the_evaluation_at_which_its_patience_ends(
    run: ScriptedRun, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    outcome = run.train(patience=3)
    assert run.evaluations() == evaluated(2, 4, 6, 8, 10), "all partitions are evaluated before it stops"
    assert run.steps() == [2, 4, 6, 8, 10]
    assert (outcome.step, outcome.stopped_by, outcome.is_saved, outcome.exit_status) == (10, None, True, 0)
    best = run.save_dir / "checkpoints/4"
    assert caplog.messages[-2:] == [
        "stopped early after step 10: quality on rows has not improved in the last 3 evaluation(s); raise "
        "training.early_stopping.patience above 3 to continue",
        f"the best evaluation is that of step 4, quality on rows 0.7 ({best})",
    ]
    assert outcome.best is not None
    assert (outcome.best.step, outcome.best.value, outcome.best.checkpoint) == (4, 0.7, best)


def test_a_run_that_ends_with_its_last_step_reports_the_best_step_too(
    run: ScriptedRun, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    outcome = run.train(patience=4)
    assert (outcome.step, outcome.exit_status) == (12, 0)
    assert outcome.best is not None
    assert outcome.best.step == 12
    assert not [message for message in caplog.messages if message.startswith("stopped")]


@pytest.mark.parametrize(("delta", "stops_at"), [(0.0, 10), (0.1, 10), (0.2, 8), (0.3, 6)])
def test_min_delta_ignores_smaller_improvements(run: ScriptedRun, delta: float, stops_at: int) -> None:
    patience = {0.0: 3, 0.1: 3, 0.2: 3, 0.3: 2}[delta]
    outcome = run.train(patience, keys={"min_delta": delta})
    assert outcome.step == stops_at
    assert outcome.best is not None
    assert outcome.best.step == (4 if delta < 0.2 else 2)


@pytest.mark.parametrize(
    ("step", "partition"), [(step, partition) for step in (2, 4, 8, 10) for partition in PARTITIONS]
)
def test_a_run_that_is_killed_between_a_checkpoint_and_its_evaluation_stops_at_the_same_step(
    run: ScriptedRun, tmp_path: Path, step: int, partition: str
) -> None:
    whole = ScriptedRun(tmp_path / "whole")
    whole.train()
    run.train(num_train_steps=step)
    run.kill_before(partition, step)
    assert run.train().step == 10
    assert run.begun.count("rows") == 2 + 5 + (partition == "rows"), "two for the names of metrics"
    assert_equal_files(run, whole)


@pytest.mark.parametrize("step", [4, 8, 10])
def test_a_run_that_is_killed_after_an_evaluation_stops_at_the_same_step(
    run: ScriptedRun, tmp_path: Path, step: int
) -> None:
    """The checkpoint of the step was saved before its evaluation, so it does not contain the result."""
    whole = ScriptedRun(tmp_path / "whole")
    whole.train()
    run.train(num_train_steps=step)
    assert run.train().step == 10
    assert_equal_files(run, whole)


def test_a_resume_from_an_earlier_checkpoint_makes_the_same_decisions(run: ScriptedRun, tmp_path: Path) -> None:
    whole = ScriptedRun(tmp_path / "whole")
    whole.train()
    run.train()
    for step in (8, 10):
        shutil.rmtree(run.save_dir / f"checkpoints/{step}")
    assert run.train().step == 10
    assert_equal_files(run, whole)


def test_a_stop_signal_during_the_last_evaluation_does_not_change_the_decision(run: ScriptedRun) -> None:
    def stop(partition: str) -> None:
        if partition == "others" and run.begun.count(partition) == 5:
            signal.raise_signal(signal.SIGTERM)

    run.on_partition = stop
    outcome = run.train()
    assert (outcome.step, outcome.stopped_by) == (10, signal.SIGTERM)
    assert run.evaluations() == [*evaluated(2, 4, 6, 8), (10, "rows")]
    outcome = run.train()
    assert (outcome.step, outcome.stopped_by) == (10, None)
    assert run.evaluations() == evaluated(2, 4, 6, 8, 10)


def test_a_stopped_run_is_finished_until_its_patience_is_larger(
    run: ScriptedRun, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run.train()
    before = run.measurements()
    for changes in ({}, {"num_train_steps": 24, "num_epochs": 2}, {"eval_every_n": 6}, {"num_train_steps": 5}):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            outcome = run.train(**changes)
        assert (outcome.step, outcome.stopped_by, outcome.exit_status) == (10, None, 0)
        assert outcome.best is not None
        (message,) = [message for message in caplog.messages if message.startswith("finished: ")]
        assert "stopped early after step 10" in message
        assert "raise training.early_stopping.patience above 3 to continue" in message
        assert run.measurements() == before
    assert run.train(patience=4).step == 12
    whole = ScriptedRun(tmp_path / "whole")
    whole.train(patience=4)
    assert_equal_files(run, whole)


def test_a_run_that_has_stopped_at_its_last_step_needs_a_larger_patience_too(run: ScriptedRun) -> None:
    """Step 9 is evaluated only because it is the last one."""
    run.train(patience=2, num_train_steps=9)
    assert run.evaluations() == evaluated(2, 4, 6, 8)
    run.train(patience=3, num_train_steps=9)
    assert run.evaluations() == evaluated(2, 4, 6, 8, 9)
    assert run.train(patience=3, num_train_steps=12).step == 9
    assert run.train(patience=5, num_train_steps=12).step == 12


def test_early_stopping_can_be_removed_or_compare_another_metric(
    run: ScriptedRun, caplog: pytest.LogCaptureFixture
) -> None:
    run.train(patience=2)
    caplog.set_level(logging.INFO)
    assert run.train(patience=2, keys={"metric": "falling", "mode": "min"}).step == 12
    assert [message for message in caplog.messages if message.startswith("early stopping begins to count again")]
    run.train(patience=2, num_train_steps=14, num_epochs=2)
    assert run.train(None, num_train_steps=16, num_epochs=2).best is None
    assert "early_stopping" in read_state(run.save_dir / "checkpoints/16")


def test_an_evaluation_that_the_time_limit_cuts_short_does_not_count(run: ScriptedRun) -> None:
    outcome = run.train(patience=1, eval_timeout_in_s=1e-9)
    assert outcome.step == 12
    assert outcome.best is None
    assert all(m.timing["timed_out"] for m in run.measurements() if m.mode == "evaluate")


@pytest.mark.parametrize("keep_best", [False, True])
def test_rotation_keeps_the_best_checkpoint(run: ScriptedRun, keep_best: bool) -> None:
    """Step 10 has the same value as step 4, the best one; of equal ones, checkpoint_keep_best keeps the newer."""
    training: dict[str, Any] = {"checkpoint_max_to_keep": 2}
    if keep_best:
        training["checkpoint_keep_best"] = {"partition": "rows", "metric": "quality", "mode": "max"}
    outcome = run.train(patience=3, **training)
    assert run.steps() == [4, 8, 10]
    assert outcome.best is not None
    assert outcome.best.checkpoint == run.save_dir / "checkpoints/4"
    run.train(patience=4, **training)
    assert run.steps() == [10, 12], "step 12 is better"
