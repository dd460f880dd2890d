"""Configured features on a GPU. Without CUDA these tests are skipped."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from common.tracking.metrics_file import read_metrics
from tests.support.feature_table import FEATURES, config, write_config, write_data
from tests.support.root import ROOT

pytestmark = pytest.mark.gpu


def losses(directory: Path, data: Path, visible_devices: str) -> list[float]:
    """Train on the table, and return the losses of the steps and of the evaluations."""
    features = {
        name: feature | ({"unknown_pseudo_count": 0.0} if feature["kind"].startswith("categor") else {})
        for name, feature in FEATURES.items()
    }
    values = config(data, directory / "run", features)
    values["optimizer"] = {"single_task_learning_rate": {"constant": 0.01}, "adamw": {}}
    values["training"]["ema_decay"] = 0.9
    command = [sys.executable, "-m", "projects.home.recap.main", "--config"]
    directory.mkdir()
    subprocess.run(
        [*command, str(write_config(directory / "config.yaml", values))],
        cwd=ROOT,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": visible_devices},
        check=True,
        timeout=200,
    )
    measured = read_metrics(directory / "run/metrics.jsonl")
    return [float(m.metrics["loss" if m.mode == "train" else "mean/loss"] or 0) for m in measured]


def test_features_of_all_kinds_train_as_on_a_cpu(tmp_path: Path):
    data = write_data(tmp_path / "data")
    on_gpu, on_cpu = (losses(tmp_path / f"on{devices}", data, devices) for devices in ("0", ""))
    assert len(on_gpu) == 15  # 12 steps and 3 evaluations
    np.testing.assert_allclose(on_gpu, on_cpu, rtol=1e-3)
