"""The evaluator on two ranks: it measures what the trainer does, and what one rank meets alone is decided by both."""

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


def job(save_dir: Path, timeout_in_s: float = 60.0) -> JobConfig:
    training = TrainingConfig(
        save_dir=str(save_dir), num_train_steps=10, checkpoint_every_n=4, eval_timeout_in_s=timeout_in_s
    )
    return JobConfig(training=training, runtime=RuntimeConfig(seed=3))


def parts(directory: Path, world: World) -> tuple[Any, dict[str, EvaluationSet]]:
    reader = rows_reader(directory, world)
    return reader, {"rows": EvaluationSet(reader, lambda device: MultiTaskMetrics(["a", "b"], device))}


def evaluate(config: JobConfig, directory: Path, world: World) -> FollowerOutcome:
    return only_evaluate(config, ToyModel(batch_norm=True), *parts(directory, world), world)


def measured(metrics: Path) -> list[tuple[int, Any]]:
    return [(m.step, m.metrics) for m in read_metrics(metrics) if m.mode == "evaluate"]


class KillWhenItWaits(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage().startswith("waiting for"):
            os.kill(os.getpid(), signal.SIGTERM)


def worker(world: World, directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    run = directory / "run"
    model = ToyModel(batch_norm=True)
    optimizer = torch.optim.Adam([{"params": list(model.parameters()), "name": "all"}], fused=True)
    rates = ParameterGroupScheduler(optimizer, [LearningRate(constant=0.01)])
    train(job(run), model, optimizer, rates, *parts(directory, world), world)
    evaluate(job(run), directory, world)
    if world.is_rank_zero:
        found["trainer"] = measured(run / "metrics.jsonl")
        found["evaluator"] = measured(run / "metrics-evaluator.jsonl")
        (run / "metrics-evaluator.jsonl").unlink()

    # Rank 1 alone can't read step 4, ever, and doesn't see step 8 at its first look.
    unseen = [NoCheckpointError("not here yet")]

    def on_rank_1(path: Path) -> str:
        if world.rank == 1 and path.parent.name == "4":
            raise OSError(5, "Input/output error", str(path))
        if world.rank == 1 and path.parent.name == "8" and path.name != "state.json" and unseen:
            raise unseen.pop()
        return file_digest(path)

    with mock.patch.object(checkpoint_reader, "file_digest", on_rank_1):
        evaluate(job(run), directory, world)
    if world.is_rank_zero:
        found["with rank 1 half blind"] = measured(run / "metrics-evaluator.jsonl")

    # Step 8 is removed by hand while rank 1 reads it, and there is no room for the marks at first.
    changed = directory / "changed/run"
    if world.is_rank_zero:
        shutil.copytree(run / "checkpoints", changed / "checkpoints")

    def amid_the_digests(path: Path) -> str:
        if world.rank == 1 and path.name != "state.json" and path.parent.name == "8":
            shutil.rmtree(path.parent)
        return file_digest(path)

    with mock.patch.object(checkpoint_reader, "file_digest", amid_the_digests):
        with full_disk(100), pytest.raises(UserError) as raised:
            evaluate(job(changed), directory, world)
        found["no room"] = str(raised.value)
        evaluate(job(changed), directory, world)
    if world.is_rank_zero:
        found["with step 8 removed"] = measured(changed / "metrics-evaluator.jsonl")

    # A signal to rank 1 alone, while both wait.
    logger = logging.getLogger("core.evaluation.poller")
    logger.setLevel(logging.INFO)
    handler = KillWhenItWaits()
    if world.rank == 1:
        logger.addHandler(handler)
    outcome = evaluate(job(directory / "empty"), directory, world)
    logger.removeHandler(handler)
    found["stopped by"] = outcome.stopped_by

    # Nothing comes.
    with pytest.raises(UserError) as raised:
        evaluate(job(directory / "empty", timeout_in_s=0.1), directory, world)
    found["nothing came"] = str(raised.value)
    return found


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("two-ranks")
    rows_reader(directory)
    return directory


@pytest.fixture(scope="module")
def ranks(directory: Path) -> list[dict[str, Any]]:
    return run_ranks(worker, directory)


def test_measures_what_the_trainer_does_bit_for_bit(ranks):
    assert [step for step, _ in ranks[0]["evaluator"]] == [4, 8, 10]
    assert ranks[0]["evaluator"] == ranks[0]["trainer"]


def test_one_process_measures_the_same(ranks, directory, tmp_path):
    shutil.copytree(directory / "run/checkpoints", tmp_path / "run/checkpoints")
    evaluate(job(tmp_path / "run"), directory, ALONE)
    alone = measured(tmp_path / "run/metrics-evaluator.jsonl")
    for (step, metrics), (expected_step, expected) in zip(alone, ranks[0]["trainer"], strict=True):
        assert step == expected_step
        assert metrics == pytest.approx(expected, rel=1e-6)


def test_what_one_rank_cannot_read_is_left_out_by_both_and_looked_for_again(ranks):
    expected = [measurement for measurement in ranks[0]["trainer"] if measurement[0] > 4]
    assert ranks[0]["with rank 1 half blind"] == expected


def test_a_checkpoint_that_is_removed_while_it_is_read_is_left_out_by_both(ranks):
    expected = [measurement for measurement in ranks[0]["trainer"] if measurement[0] != 8]
    assert ranks[0]["with step 8 removed"] == expected


def test_marks_that_cannot_be_written_end_both(ranks):
    for found in ranks:
        assert "metrics-evaluator.jsonl: cannot write: File too large; make room" in found["no room"]


def test_a_signal_to_one_rank_ends_the_wait_of_both(ranks):
    assert [found["stopped by"] for found in ranks] == [signal.SIGTERM] * 2


def test_both_ranks_know_that_nothing_came(ranks):
    for found in ranks:
        assert "no complete and undamaged checkpoint appeared" in found["nothing came"]
