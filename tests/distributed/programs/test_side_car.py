"""Trainer and evaluator as a user starts them, side by side, and killed."""

import json
from pathlib import Path
from typing import Any

import yaml

from common.checkpointing.directory import complete_steps
from common.tracking.metrics_file import read_metrics
from core.evaluation.completed import completed_partitions
from tests.support.programs import TIMEOUT_IN_S, started, wait_for_line
from tests.support.runs import LOCAL_YAML, small_run


def measured(path: Path) -> list[tuple[int, str | None, Any]]:
    return [(m.step, m.partition, m.metrics) for m in read_metrics(path) if m.mode == "evaluate"]


def test_both_are_killed_and_started_again_and_nothing_is_missing_or_twice(recap_data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    again = yaml.safe_load(LOCAL_YAML.read_text())["validation_data"]["validation"] | {
        "inputs": f"{recap_data}/validation",
        "seg_dense_schema": {"schema_path": f"{recap_data}/schema.json"},
    }
    overrides = ("training.num_train_steps=16", f"validation_data.again={json.dumps(again)}")
    trainer = small_run(recap_data, run, *overrides)
    evaluator = [*trainer, "--mode", "evaluate"]

    with started(evaluator) as side_car:
        with started(trainer) as training:
            wait_for_line(training, r"saved .*/checkpoints/4$")
        wait_for_line(side_car, "evaluated again at step 4")  # whose mark may come, or not any more
    steps = complete_steps(run / "checkpoints")
    assert steps[0] == 4
    assert "validation" in completed_partitions(run / "metrics-evaluator.jsonl")[4]
    first = (run / "metrics-evaluator.jsonl").read_text().splitlines()[0]

    with started(evaluator) as side_car, started(trainer) as training:
        assert training.wait(TIMEOUT_IN_S) == 0
        stdout, stderr = side_car.communicate(timeout=TIMEOUT_IN_S)
    assert side_car.returncode == 0, stderr
    assert "again after step 16: 500 examples" in stdout
    assert f"metrics        {run}/metrics-evaluator.jsonl" in stdout
    found = measured(run / "metrics-evaluator.jsonl")
    assert found == measured(run / "metrics.jsonl")
    assert [(step, name) for step, name, _ in found] == [
        (step, name) for step in (4, 8, 12, 16) for name in ("validation", "again")
    ]
    assert (run / "metrics-evaluator.jsonl").read_text().splitlines()[0] == first
