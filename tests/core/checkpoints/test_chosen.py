"""Checks which checkpoint of a run is chosen."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from common.checkpointing.writer import write_checkpoint
from common.errors import UserError
from common.tracking.metrics_file import read_metrics
from core.checkpoints.chosen import choose_checkpoint
from tests.support.evaluated_run import EvaluatedRun

CHOICE = {"partition": "first", "metric": "mean/auroc", "mode": "max"}


@pytest.fixture
def run(tmp_path: Path) -> EvaluatedRun:
    return EvaluatedRun(tmp_path)


def best_step(run: EvaluatedRun) -> int:
    """Return the step with the highest metric, by a loop over the metrics file."""
    measured = [m for m in read_metrics(run.save_dir / "metrics.jsonl") if m.partition == "first"]
    return max(measured, key=lambda m: (m.metrics["mean/auroc"] or 0, m.step)).step


def test_the_newest_checkpoint_is_the_default(run: EvaluatedRun) -> None:
    run.train()
    for path in (run.save_dir, run.save_dir / "checkpoints", run.save_dir / "checkpoints/10"):
        assert choose_checkpoint(path, best=False) == run.save_dir / "checkpoints/10"
    assert choose_checkpoint(run.save_dir / "checkpoints/4", best=False).name == "4"


def test_the_best_checkpoint_is_that_of_the_metrics(run: EvaluatedRun) -> None:
    run.train(checkpoint_max_to_keep=3, checkpoint_keep_best={**CHOICE, "top_k": 1})
    expected = run.save_dir / f"checkpoints/{best_step(run)}"
    assert choose_checkpoint(run.save_dir, best=True) == expected
    # An evaluation by a second job counts too.
    (run.save_dir / "metrics.jsonl").rename(run.metrics)
    assert choose_checkpoint(run.save_dir / "checkpoints", best=True) == expected


def add_evaluation_of_follower(run: EvaluatedRun, step: int) -> None:
    """Write an evaluation that is better than those of the trainer."""
    line = {"step": step, "mode": "evaluate", "partition": "first", "metrics": {"mean/auroc": 1.0}, "timing": {}}
    run.metrics.write_text(json.dumps(line) + "\n")


def test_the_best_checkpoint_may_be_one_that_only_the_follower_has_evaluated(run: EvaluatedRun) -> None:
    """Rotation keeps it, because checkpoint_keep_best compares both metrics files."""
    run.train(eval_every_n=8, checkpoint_max_to_keep=3, checkpoint_keep_best={**CHOICE, "top_k": 1})
    add_evaluation_of_follower(run, 4)
    assert choose_checkpoint(run.save_dir, best=True).name == "4"


def test_early_stopping_compares_only_evaluations_of_the_trainer(run: EvaluatedRun) -> None:
    run.train(eval_every_n=8, early_stopping={**CHOICE, "patience": 99})
    add_evaluation_of_follower(run, 4)
    assert choose_checkpoint(run.save_dir, best=True).name == str(best_step(run))


def test_a_checkpoint_without_a_configuration_is_an_error(tmp_path: Path) -> None:
    """Earlier versions saved none."""
    path = write_checkpoint(tmp_path / "checkpoints", 4, {"x": torch.ones(1)}, {})
    with pytest.raises(UserError, match=f"another version of this program saved {path}, "):
        choose_checkpoint(tmp_path, best=True)


def test_a_best_checkpoint_that_is_unknown_is_an_error(run: EvaluatedRun) -> None:
    run.train(checkpoint_max_to_keep=3, checkpoint_keep_best={**CHOICE, "top_k": 1})
    with pytest.raises(UserError, match=f"is one checkpoint. Give the save_dir of the run, {run.save_dir}$"):
        choose_checkpoint(run.save_dir / "checkpoints/10", best=True)
    (run.save_dir / "metrics.jsonl").unlink()
    with pytest.raises(UserError, match=r"no evaluation in .*metrics\.jsonl or .*metrics-evaluator.jsonl has a value"):
        choose_checkpoint(run.save_dir, best=True)


def test_a_best_checkpoint_that_was_deleted_is_an_error(run: EvaluatedRun) -> None:
    run.train(checkpoint_every_n=1, early_stopping={**CHOICE, "patience": 99})
    best = best_step(run)
    shutil.rmtree(run.save_dir / f"checkpoints/{best}")
    with pytest.raises(UserError, match=f"no longer exists: step {best}, .* Existing checkpoints: "):
        choose_checkpoint(run.save_dir, best=True)


def test_a_run_that_compares_nothing_has_no_best_checkpoint(run: EvaluatedRun) -> None:
    run.train()
    with pytest.raises(
        UserError, match=r"configures neither training.early_stopping nor training.checkpoint_keep_best"
    ):
        choose_checkpoint(run.save_dir, best=True)
