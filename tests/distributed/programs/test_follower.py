"""Starts a trainer and its follower side by side, as a user does, and kills them."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from common.checkpointing.directory import complete_steps
from common.tracking.metrics_file import read_metrics
from core.evaluation.completed import completed_partitions
from tests.support.programs import RECAP, TIMEOUT_IN_S, TWHIN, finish, started, wait_for_line
from tests.support.runs import LOCAL_YAML, small_run, small_twhin_run

pytestmark = pytest.mark.faults


def measured(path: Path) -> list[tuple[int, str | None, Any]]:
    return [(m.step, m.partition, m.metrics) for m in read_metrics(path) if m.mode == "evaluate"]


def test_after_both_are_killed_and_restarted_each_evaluation_is_recorded_once(recap_data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    again = yaml.safe_load(LOCAL_YAML.read_text())["validation_data"]["validation"] | {
        "inputs": f"{recap_data}/validation",
        "seg_dense_schema": {"schema_path": f"{recap_data}/schema.json"},
    }
    overrides = ("training.num_train_steps=16", f"validation_data.again={json.dumps(again)}")
    trainer = small_run(recap_data, run, *overrides)
    follower = [*trainer, "--mode", "evaluate"]

    with started(follower) as following:
        with started(trainer) as training:
            wait_for_line(training, r"saved .*/checkpoints/4$")
        # The kill may come before or after this evaluation is recorded.
        wait_for_line(following, "evaluated again at step 4")
    steps = complete_steps(run / "checkpoints")
    assert steps[0] == 4
    assert "validation" in completed_partitions(run / "metrics-evaluator.jsonl")[4]
    first = (run / "metrics-evaluator.jsonl").read_text().splitlines()[0]

    with started(follower) as following, started(trainer) as training:
        assert training.wait(TIMEOUT_IN_S) == 0
        stdout, stderr = following.communicate(timeout=TIMEOUT_IN_S)
    assert following.returncode == 0, stderr
    assert "again after step 16: 500 examples" in stdout
    assert f"metrics        {run}/metrics-evaluator.jsonl" in stdout
    evaluations = measured(run / "metrics-evaluator.jsonl")
    assert evaluations == measured(run / "metrics.jsonl")
    assert [(step, name) for step, name, _ in evaluations] == [
        (step, name) for step in (4, 8, 12, 16) for name in ("validation", "again")
    ]
    assert (run / "metrics-evaluator.jsonl").read_text().splitlines()[0] == first


@pytest.mark.parametrize(("module", "processes"), [(RECAP, 3), (TWHIN, 1), (TWHIN, 3)])
def test_a_follower_runs_on_a_number_of_processes_that_training_batches_do_not_allow(
    recap_data: Path, twhin_data: Path, tmp_path: Path, module: str, processes: int
) -> None:
    if module == RECAP:
        lanes = ("train_data.lanes=2", "validation_data.validation.lanes=24")
        arguments = small_run(recap_data, tmp_path / "run", *lanes)
    else:
        sizes = ("train_data.global_batch_size=null", "train_data.per_replica_batch_size=300", "train_data.lanes=2")
        # Only the number of batches of two processes makes step 8 the last one.
        arguments = small_twhin_run(twhin_data, tmp_path / "run", *sizes, "training.num_epochs=1")
    trained = finish(arguments, 2, module=module)
    assert trained.returncode == 0, trained.stderr
    followed = finish([*arguments, "--mode", "evaluate"], processes, module=module)
    assert followed.returncode == 0, followed.stderr
    last = 12 if module == RECAP else 8
    assert f"finished: step {last} was the last step of the run" in followed.stderr
    evaluations = measured(tmp_path / "run/metrics-evaluator.jsonl")
    expected = measured(tmp_path / "run/metrics.jsonl")
    assert [(step, name) for step, name, _ in evaluations] == [(step, name) for step, name, _ in expected]
    for (_, _, found), (_, _, truth) in zip(evaluations, expected, strict=True):
        numbers, true_numbers = (
            {name: math.nan if value is None else value for name, value in values.items()} for values in (found, truth)
        )
        assert numbers == pytest.approx(true_numbers, rel=1e-5, nan_ok=True)
