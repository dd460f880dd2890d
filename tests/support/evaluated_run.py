"""A toy run with checkpoints, and its follower."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from common.optimizers.config import LearningRate
from common.optimizers.learning_rate import ParameterGroupScheduler
from common.reader.reader import BatchReader
from common.tracking.measurement import Measurement, Tracker
from common.tracking.metrics_file import read_metrics
from core.config.training import JobConfig, RuntimeConfig, TrainingConfig
from core.custom_training_loop import only_evaluate, train
from core.evaluation.follower import FollowerOutcome
from core.metrics.evaluation_set import EvaluationSet
from core.metrics.interface import Metrics
from core.metrics.multi_task import MultiTaskMetrics
from tests.support.toy import ALONE, ToyBatch, ToyModel, rows_reader

STEPS = [4, 8, 10]
"""Steps with a checkpoint."""
NAMES = ["first", "second"]
"""Partitions."""
RATE = LearningRate(constant=0.01)


class EvaluatedRun:
    """A run of 10 steps with a checkpoint every 4, and its follower."""

    def __init__(self, directory: Path) -> None:
        self.save_dir = directory / "run"
        self.reader: BatchReader[ToyBatch] = rows_reader(directory)
        self.on_partition: Callable[[], None] = lambda: None
        """Called whenever the follower begins a partition."""

    def config(self, runtime: RuntimeConfig | None = None, **training: Any) -> JobConfig:
        """Return the configuration of the run, with changes."""
        keys: dict[str, Any] = {
            "save_dir": str(self.save_dir),
            "num_train_steps": 10,
            "checkpoint_every_n": 4,
            "eval_timeout_in_s": 30.0,
        }
        return JobConfig(training=TrainingConfig(**(keys | training)), runtime=runtime or RuntimeConfig(seed=3))

    def _evaluation_sets(self, on_partition: Callable[[], None]) -> dict[str, EvaluationSet]:
        def metrics(device: torch.device) -> Metrics:
            on_partition()
            return MultiTaskMetrics(["a", "b"], device)

        return {name: EvaluationSet(self.reader, metrics) for name in NAMES}

    def train(self, *, overwrite_save_dir: bool = False, **training: Any) -> None:
        """Start the run, or continue it."""
        model = ToyModel(dropout=0.3, batch_norm=True)
        optimizer = torch.optim.Adam([{"params": list(model.parameters()), "name": "all"}], fused=True)
        train(
            self.config(**training),
            model,
            optimizer,
            ParameterGroupScheduler(optimizer, [RATE]),
            self.reader,
            self._evaluation_sets(lambda: None),
            ALONE,
            overwrite_save_dir=overwrite_save_dir,
        )

    def evaluate(
        self,
        model: ToyModel | None = None,
        trackers: Mapping[str, Callable[[], Tracker]] | None = None,
        **training: Any,
    ) -> FollowerOutcome:
        """Start the follower, or continue it."""
        return only_evaluate(
            self.config(**training),
            model or ToyModel(dropout=0.3, batch_norm=True),
            self.reader,
            self._evaluation_sets(self.on_partition),
            ALONE,
            trackers=trackers or {},
        )

    @property
    def metrics(self) -> Path:
        """The metrics file of the follower."""
        return self.save_dir / "metrics-evaluator.jsonl"

    def checkpoint(self, step: int) -> Path:
        return self.save_dir / "checkpoints" / str(step)

    def expected(self) -> list[tuple[int, str | None, Any]]:
        """Return the evaluations of the trainer."""
        return values(read_metrics(self.save_dir / "metrics.jsonl"))

    def found(self) -> list[tuple[int, str | None, Any]]:
        """Return the evaluations of the follower."""
        return values(read_metrics(self.metrics))


def values(measurements: list[Measurement]) -> list[tuple[int, str | None, Any]]:
    """Return step, partition and metrics of the evaluations among some measurements."""
    return [(m.step, m.partition, m.metrics) for m in measurements if m.mode == "evaluate"]
