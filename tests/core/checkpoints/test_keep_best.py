"""A run keeps its best checkpoints, no matter which process evaluates them."""

from pathlib import Path
from typing import Any

import pytest
import torch

from common.checkpointing.directory import complete_steps
from common.errors import ConfigError
from common.optimizers.config import LearningRate
from common.optimizers.learning_rate import ParameterGroupScheduler
from common.tracking.metrics_file import read_metrics
from core.config.training import CheckpointKeepBestConfig, JobConfig, TrainingConfig
from core.custom_training_loop import only_evaluate, train
from core.metrics.evaluation_set import EvaluationSet
from core.metrics.multi_task import MultiTaskMetrics
from tests.support.toy import ALONE, ToyModel, rows_reader

METRIC = "b/calibration"  # rises and falls within these few steps


class KeepBestRun:
    """A run with a checkpoint at every step, and its follower."""

    def __init__(self, directory: Path, **keep_best: Any) -> None:
        self.save_dir = directory / "run"
        keys: dict[str, Any] = {"partition": "rows", "metric": METRIC, "mode": "max", "top_k": 2}
        self._keep_best = CheckpointKeepBestConfig(**(keys | keep_best))
        self._reader = rows_reader(directory)
        self._evaluation_sets = {
            "rows": EvaluationSet(self._reader, lambda device: MultiTaskMetrics(["a", "b"], device))
        }

    def _config(self, num_train_steps: int, eval_every_n: int | None) -> JobConfig:
        training = TrainingConfig(
            save_dir=str(self.save_dir),
            num_train_steps=num_train_steps,
            checkpoint_every_n=1,
            checkpoint_max_to_keep=2,
            checkpoint_keep_best=self._keep_best,
            eval_every_n=eval_every_n,
            eval_timeout_in_s=30.0,
        )
        return JobConfig(training=training)

    def train(self, num_train_steps: int, eval_every_n: int | None = None) -> None:
        model = ToyModel()
        optimizer = torch.optim.Adam([{"params": list(model.parameters()), "name": "all"}], fused=True)
        rates = ParameterGroupScheduler(optimizer, [LearningRate(constant=0.2)])
        config = self._config(num_train_steps, eval_every_n)
        train(config, model, optimizer, rates, self._reader, self._evaluation_sets, ALONE)

    def evaluate(self, num_train_steps: int) -> None:
        only_evaluate(self._config(num_train_steps, 0), ToyModel(), self._reader, self._evaluation_sets, ALONE)

    def measured(self, file: str) -> dict[int, float]:
        lines = [line for line in read_metrics(self.save_dir / file) if line.mode == "evaluate"]
        return {line.step: float(line.metrics[METRIC] or 0) for line in lines}

    def steps(self) -> list[int]:
        return complete_steps(self.save_dir / "checkpoints")


def best(values: dict[int, float]) -> set[int]:
    return set(sorted(values, key=lambda step: values[step])[-2:])


def test_the_trainers_evaluations_decide_which_checkpoints_are_the_best_over_restarts(tmp_path: Path) -> None:
    job = KeepBestRun(tmp_path)
    for steps in (5, 11):
        job.train(steps)
        values = job.measured("metrics.jsonl")
        assert list(values) == list(range(1, steps + 1))
        assert set(job.steps()) == {steps - 1, steps} | best(values)
    assert len(job.steps()) == 4, "otherwise this test could not fail"


def test_a_followers_evaluations_decide_which_checkpoints_are_the_best(tmp_path: Path) -> None:
    job = KeepBestRun(tmp_path, top_k=2)
    job.train(3, eval_every_n=0)
    assert job.steps() == [2, 3], "none is evaluated yet"
    job.evaluate(3)
    values = job.measured("metrics-evaluator.jsonl")
    assert list(values) == [2, 3]
    job.train(9, eval_every_n=0)
    assert job.steps() == [2, 3, 8, 9]


@pytest.mark.parametrize(
    ("keys", "facts"),
    [
        ({"partition": "row"}, r"keep_best\.partition is 'row'.*: rows$"),
        ({"metric": "auroc"}, r"keep_best\.metric is 'auroc'.* rows .*: a/loss, .*mean/auroc"),
    ],
)
def test_a_metric_that_is_never_measured_is_an_error_before_the_run_begins(
    tmp_path: Path, keys: dict[str, str], facts: str
) -> None:
    with pytest.raises(ConfigError, match=f"^training.checkpoint_{facts}"):
        KeepBestRun(tmp_path, **keys).train(1)
    assert not (tmp_path / "run").exists()
