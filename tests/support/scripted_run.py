"""A run whose evaluations have given values."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from common.checkpointing.directory import complete_steps
from common.tracking.measurement import Measurement
from common.tracking.metrics_file import MetricsFile, read_metrics
from core.config.training import EarlyStoppingConfig, JobConfig
from core.custom_training_loop import Outcome, only_evaluate, train
from core.evaluation.follower import FollowerOutcome
from core.metrics.evaluation_set import EvaluationSet
from core.run.components import TrainingComponents
from tests.support.toy import ToyBatch, ToyModel, loop_arguments, rows_reader, toy_components

QUALITY: Mapping[int, float | None] = {2: 0.5, 4: 0.7, 6: 0.6, 8: None, 10: 0.7, 12: 0.9}
"""Values of the metric `quality` by step. Step 4 is the best until step 12."""
PARTITIONS = ("rows", "others")


class CountingModel(ToyModel):
    """A model whose state and outputs contain the number of its training steps."""

    def __init__(self) -> None:
        super().__init__(dropout=0.3, batch_norm=True)
        self.steps: torch.Tensor
        self.register_buffer("steps", torch.tensor(0))

    def forward(self, batch: ToyBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        loss, outputs = super().forward(batch)
        if self.training:
            self.steps += 1
        return loss, outputs | {"steps": self.steps}


class ScriptedMetrics:
    """Metrics with the value that belongs to the number of steps of the model."""

    headline = ("quality",)

    def __init__(self, quality: Mapping[int, float | None]) -> None:
        self._quality = quality
        self._steps = 0

    def update(self, outputs: Mapping[str, torch.Tensor]) -> None:
        self._steps = int(outputs["steps"])

    def compute(self) -> dict[str, float | int | None]:
        return {"quality": self._quality.get(self._steps), "falling": float(-self._steps), "examples": self._steps}


class ScriptedRun:
    """A run of 12 steps that stops early. It saves and evaluates every second step."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(exist_ok=True)
        self._directory = directory
        self.save_dir = directory / "run"
        self.begun: list[str] = []
        """Partitions whose evaluation has begun."""
        self.on_partition: Callable[[str], None] = lambda _: None
        """Called with each of them."""

    def _components(self, patience: int | None, **options: Any) -> TrainingComponents:
        early_stopping = None
        if patience is not None:
            keys = {"partition": "rows", "metric": "quality", "mode": "max", "patience": patience}
            early_stopping = EarlyStoppingConfig.model_validate(keys | options.pop("keys", {}))
        keys = {
            "num_train_steps": 12,
            "checkpoint_every_n": 2,
            "train_log_every_n": 2,
            "early_stopping": early_stopping,
        }
        return toy_components(self._directory, CountingModel(), **(keys | options), evaluation_sets=self._sets())

    def _sets(self) -> dict[str, EvaluationSet]:
        def metrics(partition: str) -> ScriptedMetrics:
            self.begun.append(partition)
            self.on_partition(partition)
            return ScriptedMetrics(QUALITY)

        reader = rows_reader(self._directory)
        return {name: EvaluationSet(reader, lambda _, name=name: metrics(name)) for name in PARTITIONS}  # type: ignore[misc]

    def train(self, patience: int | None = 3, **training: Any) -> Outcome:
        """Start the run, or continue it."""
        components = self._components(patience, **training)
        return train(*loop_arguments(components))

    def evaluate(self, patience: int | None = 3, **training: Any) -> FollowerOutcome:
        """Start the follower of the run."""
        components = self._components(patience, eval_timeout_in_s=30.0, **training)
        config: JobConfig = components.config
        return only_evaluate(
            config, components.model, components.train_reader, components.evaluation_sets, components.world
        )

    def kill_before(self, partition: str, step: int) -> None:
        """Restore the files that a process leaves if it is killed before it evaluates a partition at a step."""
        metrics = self.save_dir / "metrics.jsonl"
        evaluations = [(m.step, m.partition) for m in read_metrics(metrics)]
        kept = read_metrics(metrics)[: evaluations.index((step, partition))]
        metrics.unlink()
        file = MetricsFile(metrics)
        for measurement in kept:
            file.append(measurement)
        file.close()

    def evaluations(self) -> list[tuple[int, str | None]]:
        return [(m.step, m.partition) for m in self.measurements() if m.mode == "evaluate"]

    def measurements(self) -> list[Measurement]:
        return read_metrics(self.save_dir / "metrics.jsonl")

    def steps(self) -> list[int]:
        """Return the steps that have a checkpoint."""
        return complete_steps(self.save_dir / "checkpoints")
