"""The project in docs/own-project.md works as printed."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from common.tracking.metrics_file import read_metrics
from tests.support.root import ROOT

pytestmark = pytest.mark.faults


def run(directory: Path, *command: str) -> "subprocess.CompletedProcess[str]":
    """Run Python in `directory`, with this repository on its path."""
    done = subprocess.run(
        [sys.executable, *command],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


def test_the_example_trains_and_continues(tmp_path: Path) -> None:
    page = (ROOT / "docs/own-project.md").read_text()
    blocks = re.findall(r"```(?:python|yaml)\n(.*?)```", page, flags=re.DOTALL)
    for name, text in zip(("make_taste.py", "main.py", "local.yaml"), blocks, strict=True):
        (tmp_path / name).write_text(text)
    run(tmp_path, "make_taste.py")
    run(tmp_path, "main.py", "--config", "local.yaml", "--set", "training.num_train_steps=30")
    assert "continuing after step 30" in run(tmp_path, "main.py", "--config", "local.yaml").stderr
    last = read_metrics(tmp_path / "runs/taste/metrics.jsonl")[-1]
    assert (last.step, last.partition, last.metrics["examples"]) == (60, "test", 501)
    auroc = last.metrics["label/auroc"]
    assert auroc is not None
    assert auroc > 0.98
