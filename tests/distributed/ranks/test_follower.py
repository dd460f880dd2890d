"""A follower on two ranks reports the metrics of the trainer, and its ranks decide together what to do."""

import logging
import os
import shutil
import signal
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from common.checkpointing import reader as checkpoint_reader
from common.checkpointing.manifest import NoCheckpointError, file_digest
from common.distributed.world import World
from common.errors import UserError
from common.optimizers.config import LearningRate
from common.optimizers.learning_rate import ParameterGroupScheduler
from common.tracking.metrics_file import read_metrics
from core.config.training import JobConfig, RuntimeConfig, TrainingConfig
from core.custom_training_loop import only_evaluate, train
from core.evaluation.follower import FollowerOutcome
from core.metrics.evaluation_set import EvaluationSet
from core.metrics.multi_task import MultiTaskMetrics
from tests.support.faults import full_disk
from tests.support.ranks import run_ranks
from tests.support.toy import ALONE, ToyModel, rows_reader

pytestmark = pytest.mark.faults


def job_config(save_dir: Path, timeout_in_s: float = 60.0) -> JobConfig:
    training = TrainingConfig(
        save_dir=str(save_dir), num_train_steps=10, checkpoint_every_n=4, eval_timeout_in_s=timeout_in_s
    )
    return JobConfig(training=training, runtime=RuntimeConfig(seed=3))


def data(directory: Path, world: World) -> tuple[Any, dict[str, EvaluationSet]]:
    """Return the reader of the training data, and the evaluation sets."""
    reader = rows_reader(directory, world)
    return reader, {"rows": EvaluationSet(reader, lambda device: MultiTaskMetrics(["a", "b"], device))}


def evaluate(config: JobConfig, directory: Path, world: World) -> FollowerOutcome:
    return only_evaluate(config, ToyModel(batch_norm=True), *data(directory, world), world)


def evaluations(metrics: Path) -> list[tuple[int, Any]]:
    return [(m.step, m.metrics) for m in read_metrics(metrics) if m.mode == "evaluate"]


class StopWhenWaiting(logging.Handler):
    """Sends SIGTERM to this process when the follower waits for a checkpoint."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage().startswith("waiting for"):
            os.kill(os.getpid(), signal.SIGTERM)


def worker(world: World, directory: Path) -> dict[str, Any]:
    run = directory / "run"
    model = ToyModel(batch_norm=True)
    optimizer = torch.optim.Adam([{"params": list(model.parameters()), "name": "all"}], fused=True)
    rates = ParameterGroupScheduler(optimizer, [LearningRate(constant=0.01)])
    train(job_config(run), model, optimizer, rates, *data(directory, world), world)
    evaluate(job_config(run), directory, world)
    found: dict[str, Any] = {}
    if world.is_rank_zero:
        found["trainer"] = evaluations(run / "metrics.jsonl")
        found["follower"] = evaluations(run / "metrics-evaluator.jsonl")
        (run / "metrics-evaluator.jsonl").unlink()
    found["failures on rank 1"] = follow_with_failures_on_rank_1(world, directory)
    found["full disk"], found["with step 8 removed"] = follow_while_step_8_is_removed(world, directory)
    found["stopped by"] = follow_until_rank_1_is_stopped(world, directory)
    with pytest.raises(UserError) as raised:
        evaluate(job_config(directory / "empty", timeout_in_s=0.1), directory, world)
    found["no checkpoint"] = str(raised.value)
    return found


def follow_with_failures_on_rank_1(world: World, directory: Path) -> list[tuple[int, Any]]:
    """On rank 1, each read of step 4 fails, and the first read of step 8 finds no checkpoint."""
    run = directory / "run"
    missing = [NoCheckpointError("not here yet")]

    def fail_on_rank_1(path: Path) -> str:
        if world.rank == 1 and path.parent.name == "4":
            raise OSError(5, "Input/output error", str(path))
        if world.rank == 1 and path.parent.name == "8" and path.name != "state.json" and missing:
            raise missing.pop()
        return file_digest(path)

    with mock.patch.object(checkpoint_reader, "file_digest", fail_on_rank_1):
        evaluate(job_config(run), directory, world)
    return evaluations(run / "metrics-evaluator.jsonl")


def follow_while_step_8_is_removed(world: World, directory: Path) -> tuple[str, list[tuple[int, Any]]]:
    """Rank 1 reads step 8 while it is removed. The first follower cannot write its metrics file, the second one can."""
    changed = directory / "changed/run"
    if world.is_rank_zero:
        shutil.copytree(directory / "run/checkpoints", changed / "checkpoints")

    def remove_step_8(path: Path) -> str:
        if world.rank == 1 and path.name != "state.json" and path.parent.name == "8":
            shutil.rmtree(path.parent)
        return file_digest(path)

    with mock.patch.object(checkpoint_reader, "file_digest", remove_step_8):
        with full_disk(300), pytest.raises(UserError) as raised:
            evaluate(job_config(changed), directory, world)
        evaluate(job_config(changed), directory, world)
    return str(raised.value), evaluations(changed / "metrics-evaluator.jsonl")


def follow_until_rank_1_is_stopped(world: World, directory: Path) -> signal.Signals | None:
    """Only rank 1 receives a signal, while both wait."""
    logger = logging.getLogger("core.evaluation.poller")
    logger.setLevel(logging.INFO)
    handler = StopWhenWaiting()
    if world.rank == 1:
        logger.addHandler(handler)
    outcome = evaluate(job_config(directory / "empty"), directory, world)
    logger.removeHandler(handler)
    return outcome.stopped_by


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("two-ranks")
    rows_reader(directory)
    return directory


@pytest.fixture(scope="module")
def ranks(directory: Path) -> list[dict[str, Any]]:
    return run_ranks(worker, directory)


def test_metrics_equal_those_of_the_trainer_bit_for_bit(ranks):
    assert [step for step, _ in ranks[0]["follower"]] == [4, 8, 10]
    assert ranks[0]["follower"] == ranks[0]["trainer"]


def test_one_process_reports_the_same_metrics(ranks, directory, tmp_path):
    shutil.copytree(directory / "run/checkpoints", tmp_path / "run/checkpoints")
    evaluate(job_config(tmp_path / "run"), directory, ALONE)
    alone = evaluations(tmp_path / "run/metrics-evaluator.jsonl")
    for (step, metrics), (expected_step, expected) in zip(alone, ranks[0]["trainer"], strict=True):
        assert step == expected_step
        assert metrics == pytest.approx(expected, rel=1e-6)


def test_both_skip_a_checkpoint_that_one_rank_cannot_read_and_search_again(ranks):
    expected = [measurement for measurement in ranks[0]["trainer"] if measurement[0] > 4]
    assert ranks[0]["failures on rank 1"] == expected


def test_both_skip_a_checkpoint_that_is_removed_while_one_reads_it(ranks):
    expected = [measurement for measurement in ranks[0]["trainer"] if measurement[0] != 8]
    assert ranks[0]["with step 8 removed"] == expected


def test_a_full_disk_ends_both(ranks):
    for found in ranks:
        for fact in ("metrics-evaluator.jsonl: cannot write", "File too large"):
            assert fact in found["full disk"]


def test_a_signal_to_one_rank_ends_the_wait_of_both(ranks):
    assert [found["stopped by"] for found in ranks] == [signal.SIGTERM] * 2


def test_both_ranks_report_that_no_checkpoint_appeared(ranks):
    for found in ranks:
        assert "no complete and undamaged checkpoint" in found["no checkpoint"]
