"""The project and the sweep in docs/own-project.md work as printed."""

import math
import os
import re
import subprocess
import sys
import uuid
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from common.tracking.metrics_file import read_metrics
from tests.support.programs import marked_pids
from tests.support.root import ROOT

pytestmark = pytest.mark.faults

FILES = ("make_taste.py", "projects/taste/main.py", "projects/taste/local.yaml", "projects/taste/sweep.py")
SWEEP = "projects.taste.sweep"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Return a directory with the files of the page."""
    page = (ROOT / "docs/own-project.md").read_text()
    blocks = re.findall(r"```(?:python|yaml)\n(.*?)```", page, flags=re.DOTALL)
    (tmp_path / "projects/taste").mkdir(parents=True)
    for name, text in zip(FILES, blocks, strict=True):
        (tmp_path / name).write_text(text)
    for package in ("projects", "projects/taste"):
        (tmp_path / package / "__init__.py").touch()
    run(tmp_path, "make_taste.py")
    return tmp_path


def run(directory: Path, *command: str, mark: str = "") -> "subprocess.CompletedProcess[str]":
    """Run Python in `directory`, with this repository on its path."""
    done = subprocess.run(
        [sys.executable, *command],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MARK": mark},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


def test_the_example_trains_and_continues(project: Path) -> None:
    command = ("-m", "projects.taste.main", "--config", "projects/taste/local.yaml")
    run(project, *command, "--set", "training.num_train_steps=30")
    assert "continuing after step 30" in run(project, *command).stderr
    last = read_metrics(project / "runs/taste/metrics.jsonl")[-1]
    assert (last.step, last.partition, last.metrics["examples"]) == (60, "test", 501)
    auroc = last.metrics["label/auroc"]
    assert auroc is not None
    assert auroc > 0.98


def test_the_sweep_continues_after_a_failed_trial_and_prunes_a_bad_one(project: Path) -> None:
    sweep = project / "projects/taste/sweep.py"
    few = sweep.read_text().replace("TRIALS = 10", "TRIALS = 2").replace("n_startup_trials=2", "n_startup_trials=1")
    sweep.write_text(few)
    directory = project / "runs/taste-sweep"
    directory.mkdir(parents=True)
    study = optuna.create_study(study_name="taste", storage=f"sqlite:///{directory}/study.db", direction="maximize")
    for learning_rate in (0.01, math.inf, 1e-6):
        study.enqueue_trial({"learning_rate": learning_rate})
    mark = uuid.uuid4().hex
    run(project, "-m", SWEEP, mark=mark)
    printed = run(project, "-m", SWEEP, mark=mark).stdout  # the failed trial does not count
    assert marked_pids(f"MARK={mark}") == {}
    best, failed, pruned = study.get_trials()
    assert (best.state, failed.state, pruned.state) == (TrialState.COMPLETE, TrialState.FAIL, TrialState.PRUNED)
    assert printed.startswith(f"best of 3 trials: {best.value:.4f} with {{'learning_rate': 0.01}}")
    assert best.value == read_metrics(directory / "0/metrics.jsonl")[-1].metrics["label/auroc"]
    assert "learning_rate.constant" in (directory / "1.log").read_text()
    assert "stopped by SIGTERM after step" in (directory / "2.log").read_text()
    run(project, "-m", SWEEP)
    assert len(study.get_trials()) == 3
