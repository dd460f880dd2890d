"""Checks which metrics and paths the closing report has."""

import json
from pathlib import Path
from typing import Any

import pytest

from common.checkpointing.manifest import MANIFEST
from core.checkpoints.chosen import find_best
from core.closing_report import closing_report
from core.config.training import TrainingConfig
from core.run.early_stopping import BestEvaluation

CHOICE = {"partition": "rows", "metric": "auroc", "mode": "max"}
AUROC = {1: 0.5, 2: 0.8, 3: 0.7, 4: None}


@pytest.fixture
def metrics(tmp_path: Path) -> Path:
    """A metrics file of four steps and two partitions; steps 2 and 4 have checkpoints."""
    lines = [
        {"step": step, "mode": "evaluate", "partition": partition, "metrics": values, "timing": {}}
        for step, value in AUROC.items()
        for partition, values in (("rows", {"auroc": value, "examples": 8}), ("others", {"auroc": 0.1, "examples": 9}))
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for step in (2, 4):
        (tmp_path / str(step)).mkdir()
        (tmp_path / str(step) / MANIFEST).touch()
    return tmp_path / "metrics.jsonl"


def training(directory: Path, **fields: Any) -> TrainingConfig:
    return TrainingConfig.model_validate({"save_dir": str(directory), "num_train_steps": 4, **fields})


def report(metrics: Path, best: BestEvaluation | None) -> list[str]:
    return closing_report("table {0.step}".format, Path("c"), metrics, Path("config.yaml"), best).splitlines()


@pytest.mark.parametrize(
    "fields",
    [
        {"checkpoint_every_n": 1, "early_stopping": {**CHOICE, "patience": 2}},
        {"checkpoint_every_n": 1, "checkpoint_max_to_keep": 2, "checkpoint_keep_best": {**CHOICE, "top_k": 2}},
    ],
)
def test_the_tables_are_those_of_the_best_step(metrics: Path, fields: dict[str, Any]) -> None:
    best = find_best(training(metrics.parent, **fields), [metrics], metrics.parent)
    assert best == BestEvaluation(2, "rows", "auroc", 0.8, metrics.parent / "2")
    assert report(metrics, best) == [
        "",
        "rows after step 2, the best: 8 examples",
        "table 2",
        "",
        "others after step 2, the best: 9 examples",
        "table 2",
        "",
        f"best           step 2, auroc on rows 0.8 ({metrics.parent}/2)",
        "last           step 4, auroc on rows not available",
        "checkpoints    c",
        f"metrics        {metrics}",
        "configuration  config.yaml",
    ]


def test_without_a_choice_of_a_metric_nothing_is_the_best(metrics: Path) -> None:
    assert find_best(training(metrics.parent), [metrics], metrics.parent) is None
    assert report(metrics, None)[1:3] == ["rows after step 4: 8 examples", "table 4"]


def test_a_best_step_that_is_also_the_last_is_not_compared(metrics: Path) -> None:
    lines = report(metrics, BestEvaluation(4, "rows", "auroc", 0.9, None))
    assert lines[1] == "rows after step 4, the best: 8 examples"
    assert not any(line.startswith("last") for line in lines)


def test_a_partition_without_the_best_step_has_its_newest_metrics(metrics: Path) -> None:
    lines = metrics.read_text().splitlines(keepends=True)
    del lines[3]  # step 2 of the other partition
    metrics.write_text("".join(lines))
    lines = report(metrics, BestEvaluation(2, "rows", "auroc", 0.8, None))
    assert "rows after step 2, the best: 8 examples" in lines
    assert "others after step 4: 9 examples" in lines


def test_a_file_that_does_not_exist_has_no_best_step(tmp_path: Path) -> None:
    config = training(tmp_path, checkpoint_max_to_keep=2, checkpoint_keep_best=CHOICE)
    assert find_best(config, [tmp_path / "none"], tmp_path / "none") is None
    best = BestEvaluation(2, "rows", "auroc", 0.8, None)
    assert (
        report(tmp_path / "none", best)[1] == "best           step 2, auroc on rows 0.8 (its checkpoint does not exist)"
    )
