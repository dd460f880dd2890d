"""The retention of a run follows training.checkpoint_*. What retention does is tested in common/checkpointing."""

from typing import Any

import torch

from common.checkpointing.directory import complete_steps
from common.checkpointing.writer import write_checkpoint
from common.tracking.measurement import Measurement
from common.tracking.metrics_file import MetricsFile
from core.checkpoints.configured_retention import configured_retention
from core.config.training import TrainingConfig
from core.run.directory import RunDirectory


def test_checkpoints_are_kept_as_configured(tmp_path):
    best = {"partition": "rows", "metric": "mean/auroc", "mode": "max", "top_k": 1}
    options: dict[str, Any] = {
        "checkpoint_every_n": 2,
        "checkpoint_max_to_keep": 2,
        "checkpoint_keep_every_n": 6,
        "checkpoint_keep_best": best,
    }
    training = TrainingConfig.model_validate(options | {"save_dir": str(tmp_path / "run")})
    retention = configured_retention(training, RunDirectory(training.save_dir))
    assert [step for step in range(1, 7) if retention.is_due(step)] == [2, 4, 6]
    metrics = MetricsFile(tmp_path / "run/metrics.jsonl")
    for step in range(2, 17, 2):
        write_checkpoint(retention.root, step, {"x": torch.ones(1)}, {})
        metrics.append(Measurement(step, "evaluate", "rows", {"mean/auroc": 0.9 if step == 4 else 0.5}, {}))
    metrics.close()
    retention.rotate(16)
    assert complete_steps(retention.root) == [4, 6, 12, 14, 16]
