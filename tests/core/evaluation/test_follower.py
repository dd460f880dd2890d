"""The follower in this process, compared with the evaluations of the trainer at the same steps."""

import json
import logging
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from common.checkpointing import reader as checkpoint_reader
from common.checkpointing.manifest import CheckpointError, file_digest
from common.errors import UserError
from common.wandb import WandbConfig
from core.config.training import RuntimeConfig
from core.custom_training_loop import only_evaluate
from core.evaluation.completed import completed_partitions
from tests.support.evaluated_run import NAMES, STEPS, EvaluatedRun, values
from tests.support.faults import flip_a_bit
from tests.support.toy import ALONE, MemoryTracker, ToyModel
from tests.support.wandb_sessions import points, recorded


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with the evaluations of its trainer."""
    directory = tmp_path_factory.mktemp("trained")
    EvaluatedRun(directory).train()
    return directory


@pytest.fixture(autouse=True)
def _short_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.evaluation.poller._POLL_IN_S", 0.01)


@pytest.fixture
def fresh(tmp_path: Path) -> EvaluatedRun:
    return EvaluatedRun(tmp_path)


@pytest.fixture
def job(trained: Path, tmp_path: Path) -> EvaluatedRun:
    """A copy of the finished run and of its data, whose modification times belong to the identity of the run."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    return EvaluatedRun(tmp_path)


def contents(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and "evaluator" not in path.name
    }


class ActingHandler(logging.Handler):
    """Runs one action after another, each when a message is logged."""

    def __init__(self, message: str, *actions: Callable[[], None]) -> None:
        super().__init__()
        self._message = message
        self._actions = list(actions)

    def emit(self, record: logging.LogRecord) -> None:
        if self._message in record.getMessage() and self._actions:
            self._actions.pop(0)()


@pytest.fixture
def when_logged() -> Iterator[Callable[..., None]]:
    """Return a function that runs the next action each time that a message is logged."""
    logger = logging.getLogger("core.evaluation.poller")
    level, added = logger.level, []
    logger.setLevel(logging.INFO)

    def add(message: str, *actions: Callable[[], None]) -> None:
        added.append(ActingHandler(message, *actions))
        logger.addHandler(added[-1])

    yield add
    for handler in added:
        logger.removeHandler(handler)
    logger.setLevel(level)


def test_measures_what_the_trainer_measures_and_changes_none_of_its_files(job: EvaluatedRun) -> None:
    before = contents(job.save_dir)
    outcome = job.evaluate()
    assert (outcome.stopped_by, outcome.timed_out) == (None, False)
    assert [(step, name) for step, name, _ in job.found()] == [(step, name) for step in STEPS for name in NAMES]
    assert job.found() == job.expected()
    assert contents(job.save_dir) == before
    assert completed_partitions(job.metrics) == dict.fromkeys(STEPS, NAMES)


def test_starts_before_the_run_and_follows_it(fresh: EvaluatedRun, when_logged: Callable[..., None]) -> None:
    when_logged(
        "waiting for a checkpoint",
        lambda: fresh.train(num_train_steps=4),
        lambda: fresh.train(num_train_steps=7),  # as if a signal had stopped it
        lambda: fresh.train(),
    )
    assert not fresh.evaluate().timed_out
    assert [step for step, _, _ in fresh.found()] == [4, 4, 7, 7, 8, 8, 10, 10]
    assert fresh.found() == fresh.expected()


def test_ends_with_the_last_epoch_if_that_comes_before_num_train_steps(fresh: EvaluatedRun) -> None:
    fresh.train(num_train_steps=1000, num_epochs=1, eval_every_n=0)
    assert not fresh.evaluate(num_train_steps=1000, num_epochs=1).timed_out
    assert list(completed_partitions(fresh.metrics)) == [4, 8, 200 // 16]


@pytest.mark.parametrize("torn", ['{"step": 8, "mode": "eva', ""])
def test_continues_where_it_was_killed(job: EvaluatedRun, torn: str) -> None:
    job.evaluate()
    complete = job.metrics.read_text().splitlines(keepends=True)
    job.metrics.write_text("".join(complete[:3]) + torn)  # during the second partition of step 8
    begun: list[int] = []
    job.on_partition = lambda: begun.append(1)
    job.evaluate()
    assert len(begun) == 3
    assert job.found() == job.expected()
    assert job.metrics.read_text().splitlines(keepends=True)[:3] == complete[:3]
    job.evaluate()
    assert len(begun) == 3
    assert len(job.found()) == 6


def test_continues_when_the_run_gets_more_steps(job: EvaluatedRun) -> None:
    job.evaluate()
    job.train(num_train_steps=12)
    job.evaluate(num_train_steps=12)
    assert list(completed_partitions(job.metrics)) == [4, 8, 10, 12]
    assert job.found() == job.expected()


@pytest.mark.parametrize("file", ["tensors-0.bin", "tensors.json", "state.json", "manifest.json"])
@pytest.mark.parametrize("step", [8, 10])
def test_a_damaged_checkpoint_is_one_warning_and_is_skipped(
    job: EvaluatedRun, caplog: pytest.LogCaptureFixture, step: int, file: str
) -> None:
    if file == "manifest.json":
        (job.checkpoint(step) / file).write_text("{}")
    else:
        flip_a_bit(job.checkpoint(step) / file, 0)  # tensors begin with those of the model
    assert not job.evaluate().timed_out
    assert job.found() == [value for value in job.expected() if value[0] != step]
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert f"step {step} was not evaluated: {job.checkpoint(step)}/{file}" in warning


def test_a_checkpoint_that_replaces_a_damaged_one_is_evaluated(job: EvaluatedRun) -> None:
    good = job.save_dir / "good"
    shutil.copytree(job.checkpoint(4), good)
    flip_a_bit(job.checkpoint(4) / "state.json")

    def replace() -> None:
        if not good.exists():
            return
        shutil.rmtree(job.checkpoint(4))
        good.rename(job.checkpoint(4))

    job.on_partition = replace
    job.evaluate()
    assert list(completed_partitions(job.metrics)) == [8, 4, 10]
    assert sorted(job.found(), key=lambda value: value[0]) == job.expected()


@pytest.mark.parametrize("while_reading", ["state.json", "tensors.json"])
def test_a_checkpoint_that_vanishes_while_it_is_read_is_skipped(
    job: EvaluatedRun, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, while_reading: str
) -> None:
    caplog.set_level(logging.INFO)
    vanished = job.checkpoint(4)

    def digest_after_rotation(path: Path) -> str:
        if path == vanished / while_reading:
            vanished.rename(vanished.with_name(".writing-4-deleting"))
        return file_digest(path)

    monkeypatch.setattr(checkpoint_reader, "file_digest", digest_after_rotation)
    job.evaluate()
    assert job.found() == [value for value in job.expected() if value[0] > 4]
    assert f"{vanished} was removed before it was evaluated" in caplog.messages
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


def test_a_dead_trainer_is_a_warning_after_eval_timeout_in_s(
    job: EvaluatedRun, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.rmtree(job.checkpoint(10))
    outcome = job.evaluate(eval_timeout_in_s=0.2)
    assert (outcome.stopped_by, outcome.timed_out) == (None, True)
    assert list(completed_partitions(job.metrics)) == [4, 8]
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    # On a busy machine, the limit also ends evaluations, with warnings of their own.
    (warning,) = [message for message in warnings if message.startswith("no checkpoint after step")]
    assert f"no checkpoint after step 8 appeared in {job.save_dir}/checkpoints" in warning
    assert "training.eval_timeout_in_s (0.2 s)" in warning


def test_no_checkpoint_at_all_is_a_user_error_and_a_mistyped_directory_is_not_created(
    fresh: EvaluatedRun, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    root = f"{fresh.save_dir}/checkpoints"
    with pytest.raises(UserError, match=rf"{root} \(no such directory\) .*eval_timeout_in_s \(0\.2 s\)"):
        fresh.evaluate(eval_timeout_in_s=0.2)
    assert not fresh.save_dir.exists()
    fresh.checkpoint(4).parent.mkdir(parents=True)
    with pytest.raises(UserError, match=rf"{root} within .*eval_timeout_in_s \(0\.2 s\)"):
        fresh.evaluate(eval_timeout_in_s=0.2)
    missing, empty = [message for message in caplog.messages if message.endswith(": 0 of at most 0.2 s")]
    for message in (missing, empty):
        assert message.startswith(f"waiting for a checkpoint after step 0 in {root} (")
    assert "no such directory" in missing
    assert "training.save_dir" in missing
    assert "none yet" in empty


def test_a_file_in_place_of_the_directory_is_refused_at_once(fresh: EvaluatedRun) -> None:
    fresh.save_dir.write_text("")
    with pytest.raises(UserError, match=r"training\.save_dir .*/run: .*Not a directory"):
        fresh.evaluate()


def test_a_signal_drops_the_current_partition_and_the_next_start_repeats_it(job: EvaluatedRun) -> None:
    begun: list[int] = []

    def kill_at_the_third() -> None:
        begun.append(1)
        if len(begun) == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    job.on_partition = kill_at_the_third
    assert job.evaluate().stopped_by == signal.SIGTERM
    assert completed_partitions(job.metrics) == {4: NAMES}
    assert job.evaluate().stopped_by is None
    assert job.found() == job.expected()


def test_a_signal_ends_the_wait(fresh: EvaluatedRun, when_logged: Callable[..., None]) -> None:
    when_logged("waiting for a checkpoint", lambda: os.kill(os.getpid(), signal.SIGINT))
    assert fresh.evaluate().stopped_by == signal.SIGINT


def test_removing_the_directory_ends_the_wait(fresh: EvaluatedRun, when_logged: Callable[..., None]) -> None:
    fresh.checkpoint(4).parent.mkdir(parents=True)
    when_logged("waiting for a checkpoint", lambda: shutil.rmtree(fresh.save_dir))
    with pytest.raises(UserError, match=rf"{fresh.save_dir}.*removed"):
        fresh.evaluate()


def test_a_second_follower_and_a_run_that_starts_over_are_refused(
    fresh: EvaluatedRun, when_logged: Callable[..., None]
) -> None:
    refused: list[str] = []

    def try_both() -> None:
        for act in (fresh.evaluate, lambda: fresh.train(overwrite_save_dir=True)):
            with pytest.raises(UserError) as raised:
                act()
            refused.append(str(raised.value))
        fresh.train()

    fresh.checkpoint(4).parent.mkdir(parents=True)
    when_logged("waiting for a checkpoint", try_both)
    fresh.evaluate()
    for message, holder in zip(refused, ("another follower", "a follower of the earlier run"), strict=True):
        assert str(fresh.save_dir) in message
        assert holder in message
        assert f"process {os.getpid()} on" in message
    fresh.train(overwrite_save_dir=True)
    assert not fresh.metrics.exists()
    fresh.evaluate()
    assert fresh.found() == fresh.expected()


class WideModel(ToyModel):
    """Has a different hidden layer than the run."""

    def __init__(self) -> None:
        super().__init__(batch_norm=True)
        self.hidden = torch.nn.Linear(5, 9)


def test_a_checkpoint_of_another_model_is_an_error_that_lists_the_differences(job: EvaluatedRun) -> None:
    with pytest.raises(CheckpointError, match=r"hidden\.weight: \[8, 5\] in the checkpoint, \[9, 5\] in the model"):
        job.evaluate(WideModel())
    assert job.found() == []


def test_a_run_of_another_configuration_is_an_error_that_lists_the_differences(job: EvaluatedRun) -> None:
    with pytest.raises(UserError, match=r"training\.max_grad_norm: null in the run, 2\.0 now\n.*configuration"):
        job.evaluate(max_grad_norm=2.0)
    # The follower may differ in what a resume may change.
    job.evaluate(num_eval_steps=1, eval_every_n=0, train_log_every_n=7)


def test_a_configuration_without_evaluation_sets_is_an_error(fresh: EvaluatedRun) -> None:
    with pytest.raises(UserError, match="nothing to evaluate on"):
        only_evaluate(fresh.config(), ToyModel(), fresh.reader, {}, ALONE)


def test_trackers_receive_the_evaluations_and_cannot_stop_the_follower(job: EvaluatedRun) -> None:
    good, bad = MemoryTracker(), MemoryTracker(fails=True)
    job.evaluate(trackers={"bad": lambda: bad, "good": lambda: good})
    assert values(good.measurements) == job.expected()
    assert (len(bad.measurements), good.finished, bad.finished) == (1, 1, 1)


@pytest.mark.faults
def test_wandb_has_trainer_and_follower_in_one_group_and_each_point_once(
    fresh: EvaluatedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("common.tracking.trackers._FINISH_TIMEOUT_IN_S", 120.0)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    runtime = RuntimeConfig(seed=3, wandb=WandbConfig(project="recap"))
    fresh.train(runtime=runtime)
    (of_trainer,) = recorded(fresh.save_dir)
    before = set((fresh.save_dir / "wandb").glob("offline-run-*"))
    fresh.evaluate(runtime=runtime)
    # As if the follower was killed twice: before it sent a recorded evaluation, and during the last partition.
    run_file = fresh.save_dir / "wandb-evaluator.json"
    content = json.loads(run_file.read_text())
    run_file.write_text(json.dumps({**content, "sent_steps": {"evaluate/first": [4, 8, 10], "evaluate/second": [4]}}))
    lines = fresh.metrics.read_text().splitlines(keepends=True)
    fresh.metrics.write_text("".join(lines[:4]))
    fresh.evaluate(runtime=runtime)

    sessions = [
        session
        for directory, session in zip(
            sorted((fresh.save_dir / "wandb").glob("offline-run-*")), recorded(fresh.save_dir), strict=True
        )
        if directory not in before
    ]
    (trainer_run,) = [record["run"] for record in of_trainer if record["type"] == "run"]
    runs = [record["run"] for session in sessions for record in session if record["type"] == "run"]
    assert {run["run_id"] for run in runs} == {content["run_id"]} != {trainer_run["run_id"]}
    assert {run["run_group"] for run in [*runs, trainer_run]} == {trainer_run["run_id"]}
    assert trainer_run["job_type"] == "train"
    assert {run["job_type"] for run in runs} == {"evaluate"}
    assert {run["project"] for run in runs} == {"recap"}
    sent = [
        [(point["trainer/global_step"], key.split("/")[1]) for point in points(session) for key in sorted(point)[:1]]
        for session in sessions
    ]
    assert sent == [
        [(step, name) for step in STEPS for name in NAMES],
        [(8, "second"), (10, "second")],
    ]
    by_key = {key: value for point in points(sessions[0]) for key, value in point.items()}
    last = fresh.expected()[-1][2]
    assert {key: by_key[f"evaluate/second/{key}"] for key in last} == last
