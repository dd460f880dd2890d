"""The retention of a run follows training.checkpoint_*. What retention does is tested in common/checkpointing."""

from pathlib import Path
from typing import Any

import pytest
import torch

from common.checkpointing.directory import complete_steps
from common.checkpointing.writer import write_checkpoint
from common.errors import ConfigError
from common.tracking.measurement import Measurement
from common.tracking.metrics_file import MetricsFile
from core.checkpoints.configured_retention import configured_retention
from core.config.training import JobConfig, TrainingConfig
from core.metrics.evaluation_set import EvaluationSet
from core.metrics.multi_task import MultiTaskMetrics
from core.run.components import Components
from core.run.directory import RunDirectory
from tests.support.toy import ALONE, ToyModel, dense, rows_reader


def components(directory: Path, **training: Any) -> Components:
    """Return the components of a run that evaluates one partition, `rows`."""
    reader = rows_reader(directory)
    return Components(
        config=JobConfig(training=TrainingConfig(save_dir=str(directory / "run"), **training)),
        model=dense(ToyModel()),
        train_reader=reader,
        evaluation_sets={"rows": EvaluationSet(reader, lambda device: MultiTaskMetrics(["a", "b"], device))},
        world=ALONE,
    )


def test_checkpoints_are_kept_as_configured(tmp_path):
    best = {"partition": "rows", "metric": "mean/auroc", "mode": "max", "top_k": 1}
    options: dict[str, Any] = {
        "checkpoint_every_n": 2,
        "checkpoint_max_to_keep": 2,
        "checkpoint_keep_every_n": 6,
        "checkpoint_keep_best": best,
    }
    config = TrainingConfig.model_validate(options)
    configured = components(tmp_path, **{name: getattr(config, name) for name in options})
    retention = configured_retention(configured, RunDirectory(configured.config.training.save_dir))
    assert [step for step in range(1, 7) if retention.is_due(step)] == [2, 4, 6]
    metrics = MetricsFile(tmp_path / "run/metrics.jsonl")
    for step in range(2, 17, 2):
        write_checkpoint(retention.root, step, {"x": torch.ones(1)}, {})
        metrics.append(Measurement(step, "evaluate", "rows", {"mean/auroc": 0.9 if step == 4 else 0.5}, {}))
    metrics.close()
    retention.rotate(16)
    assert complete_steps(retention.root) == [4, 6, 12, 14, 16]


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({"partition": "columns"}, ("training.checkpoint_keep_best.partition", "'columns'", "rows")),
        ({"metric": "mean/aoruc"}, ("training.checkpoint_keep_best.metric", "'mean/aoruc'", "mean/auroc")),
    ],
)
def test_an_unknown_partition_or_metric_is_an_error_that_lists_the_known_ones(tmp_path, changes, facts):
    best = {"partition": "rows", "metric": "mean/auroc", "mode": "max"} | changes
    config = TrainingConfig.model_validate({"checkpoint_max_to_keep": 2, "checkpoint_keep_best": best})
    configured = components(tmp_path, checkpoint_max_to_keep=2, checkpoint_keep_best=config.checkpoint_keep_best)
    with pytest.raises(ConfigError) as raised:
        configured_retention(configured, RunDirectory(configured.config.training.save_dir))
    for fact in facts:
        assert fact in str(raised.value)
