"""A run keeps its best checkpoints, whoever evaluates them."""

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

METRIC = "b/calibration"  # which comes and goes in these few steps


class Job:
    def __init__(self, directory: Path, **keep_best: Any) -> None:
        self.save_dir = directory / "run"
        keys: dict[str, Any] = {"partition": "rows", "metric": METRIC, "mode": "max", "top_k": 2}
        self._keep_best = CheckpointKeepBestConfig(**(keys | keep_best))
        self._reader = rows_reader(directory)
        self._partitions = {"rows": EvaluationSet(self._reader, lambda device: MultiTaskMetrics(["a", "b"], device))}

    def _config(self, num_train_steps: int, eval_every_n: int | None) -> JobConfig:
        training = TrainingConfig(
            save_dir=str(self.save_dir),
            num_train_steps=num_train_steps,
            checkpoint_every_n=1,
            checkpoint_max_to_keep=2,
            checkpoint_keep_best=self._keep_best,
            eval_every_n=eval_every_n,
            eval_timeout_in_s=0.1,
        )
        return JobConfig(training=training)

    def train(self, num_train_steps: int, eval_every_n: int | None = None) -> None:
        model = ToyModel()
        optimizer = torch.optim.Adam([{"params": list(model.parameters()), "name": "all"}], fused=True)
        rates = ParameterGroupScheduler(optimizer, [LearningRate(constant=0.2)])
        config = self._config(num_train_steps, eval_every_n)
        train(config, model, optimizer, rates, self._reader, self._partitions, ALONE)

    def evaluate(self, num_train_steps: int) -> None:
        only_evaluate(self._config(num_train_steps, 0), ToyModel(), self._reader, self._partitions, ALONE)

    def measured(self, file: str) -> dict[int, float]:
        lines = [line for line in read_metrics(self.save_dir / file) if line.mode == "evaluate"]
        return {line.step: float(line.metrics[METRIC] or 0) for line in lines}

    def steps(self) -> list[int]:
        return complete_steps(self.save_dir / "checkpoints")


def best(values: dict[int, float]) -> set[int]:
    return set(sorted(values, key=lambda step: values[step])[-2:])


def test_the_newest_and_the_best_by_the_trainers_own_evaluations_over_restarts(tmp_path: Path) -> None:
    job = Job(tmp_path)
    for steps in (5, 11):
        job.train(steps)
        values = job.measured("metrics.jsonl")
        assert list(values) == list(range(1, steps + 1))
        assert set(job.steps()) == {steps - 1, steps} | best(values)
    assert len(job.steps()) == 4, "else the test could not fail"


def test_the_best_by_an_evaluator_beside_the_run(tmp_path: Path) -> None:
    job = Job(tmp_path, top_k=2)
    job.train(3, eval_every_n=0)
    assert job.steps() == [2, 3], "not one was evaluated"
    job.evaluate(3)
    values = job.measured("metrics-evaluator.jsonl")
    assert list(values) == [2, 3]
    job.train(9, eval_every_n=0)
    assert job.steps() == [2, 3, 8, 9]


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"partition": "row"}, r"keep_best\.partition: 'row' given; evaluated are: rows"),
        ({"metric": "auroc"}, r"keep_best\.metric: 'auroc' given; evaluations of rows have: a/loss, .*mean/auroc"),
    ],
)
def test_what_is_never_measured_is_told_at_the_start(tmp_path: Path, keys: dict[str, str], told: str) -> None:
    with pytest.raises(ConfigError, match=f"^training.checkpoint_{told}"):
        Job(tmp_path, **keys).train(1)
    assert not (tmp_path / "run").exists()
