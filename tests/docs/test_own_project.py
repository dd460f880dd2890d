"""The project of docs/own-project.md works as it stands there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from common.metrics_file import read_metrics

ROOT = Path(__file__).resolve().parent.parent.parent


def write_table(path: Path, rows: int, seed: int) -> None:
    """Four features and a label that their sum decides."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(rows, 4)).astype("float32")
    lists = pa.FixedSizeListArray.from_arrays(pa.array(features.reshape(-1)), 4)
    pq.write_table(
        pa.table({"features": lists, "label": (features.sum(1) > 0).astype("int8")}), path, row_group_size=500
    )


def test_the_example_trains_and_continues(tmp_path: Path) -> None:
    code, text = re.findall(
        r"```(?:python|yaml)\n(.*?)```", (ROOT / "docs/own-project.md").read_text(), flags=re.DOTALL
    )
    (tmp_path / "main.py").write_text(code)
    config = yaml.safe_load(text)
    config["training"]["save_dir"] = str(tmp_path / "run")
    for split, rows in (("train", 4000), ("test", 501)):
        config[f"{split}_inputs"] = str(tmp_path / f"{split}.parquet")
        write_table(tmp_path / f"{split}.parquet", rows, seed=rows)
    for steps in (30, 60):
        config["training"]["num_train_steps"] = steps
        (tmp_path / "local.yaml").write_text(yaml.safe_dump(config))
        done = subprocess.run(
            [sys.executable, tmp_path / "main.py", "--config", tmp_path / "local.yaml"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    assert "continuing after step 30" in done.stderr
    last = read_metrics(tmp_path / "run/metrics.jsonl")[-1]
    assert (last.step, last.partition, last.metrics["examples"]) == (60, "test", 501)
    auroc = last.metrics["label/auroc"]
    assert auroc is not None
    assert auroc > 0.98
