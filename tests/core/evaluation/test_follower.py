"""The evaluator in this process, against what the trainer itself has measured at the same steps."""

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
from core.evaluation.completed import evaluated
from tests.support.evaluated_run import NAMES, STEPS, Job, values
from tests.support.faults import flip_a_bit
from tests.support.toy import ALONE, Remembering, ToyModel
from tests.support.wandb_sessions import points, recorded


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is finished, with the evaluations of its trainer."""
    directory = tmp_path_factory.mktemp("trained")
    Job(directory).train()
    return directory


@pytest.fixture
def fresh(tmp_path: Path) -> Job:
    return Job(tmp_path)


@pytest.fixture
def job(trained: Path, tmp_path: Path) -> Job:
    """A copy of the finished run, and of its rows with their time, which are what they were trained on."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    return Job(tmp_path)


def contents(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and "evaluator" not in path.name
    }


class Acting(logging.Handler):
    """Does something as soon as a message is logged."""

    def __init__(self, message: str, *actions: Callable[[], None]) -> None:
        super().__init__()
        self._message = message
        self._actions = list(actions)

    def emit(self, record: logging.LogRecord) -> None:
        if self._message in record.getMessage() and self._actions:
            self._actions.pop(0)()


@pytest.fixture
def when_logged() -> Iterator[Callable[..., None]]:
    """when_logged(message, *actions): at each message the next of the actions."""
    logger = logging.getLogger("core.evaluation.poller")
    level, added = logger.level, []
    logger.setLevel(logging.INFO)

    def add(message: str, *actions: Callable[[], None]) -> None:
        added.append(Acting(message, *actions))
        logger.addHandler(added[-1])

    yield add
    for handler in added:
        logger.removeHandler(handler)
    logger.setLevel(level)


def test_measures_what_the_trainer_does_bit_for_bit_and_touches_nothing_of_its(job: Job) -> None:
    before = contents(job.save_dir)
    outcome = job.evaluate()
    assert (outcome.stopped_by, outcome.timed_out) == (None, False)
    assert [(step, name) for step, name, _ in job.found()] == [(step, name) for step in STEPS for name in NAMES]
    assert job.found() == job.expected()
    assert contents(job.save_dir) == before
    assert evaluated(job.metrics) == dict.fromkeys(STEPS, NAMES)
    assert evaluated(job.save_dir / "nowhere") == {}


def test_begins_before_the_run_and_follows_it(fresh: Job, when_logged: Callable[..., None]) -> None:
    when_logged(
        "waiting for a checkpoint",
        lambda: fresh.train(num_train_steps=4),
        lambda: fresh.train(num_train_steps=7),  # as a signal would leave it
        lambda: fresh.train(),
    )
    assert not fresh.evaluate().timed_out
    assert [step for step, _, _ in fresh.found()] == [4, 4, 7, 7, 8, 8, 10, 10]
    assert fresh.found() == fresh.expected()


def test_ends_with_the_epochs_where_they_come_first(fresh: Job) -> None:
    fresh.train(num_train_steps=1000, num_epochs=1, eval_every_n=0)
    assert not fresh.evaluate(num_train_steps=1000, num_epochs=1).timed_out
    assert list(evaluated(fresh.metrics)) == [4, 8, 200 // 16]


@pytest.mark.parametrize("torn", ['{"step": 8, "mode": "eva', ""])
def test_goes_on_where_it_was_killed(job: Job, torn: str) -> None:
    job.evaluate()
    complete = job.metrics.read_text().splitlines(keepends=True)
    job.metrics.write_text("".join(complete[:3]) + torn)  # amid the second partition of step 8
    begun: list[int] = []
    job.on_partition = lambda: begun.append(1)
    job.evaluate()
    assert len(begun) == 3
    assert job.found() == job.expected()
    assert job.metrics.read_text().splitlines(keepends=True)[:3] == complete[:3]
    job.evaluate()
    assert len(begun) == 3
    assert len(job.found()) == 6


def test_more_steps_go_on(job: Job) -> None:
    job.evaluate()
    job.train(num_train_steps=12)
    job.evaluate(num_train_steps=12)
    assert list(evaluated(job.metrics)) == [4, 8, 10, 12]
    assert job.found() == job.expected()


@pytest.mark.parametrize("file", ["__0_0.distcp", "state.json", "manifest.json"])
@pytest.mark.parametrize("step", [8, 10])
def test_a_damaged_checkpoint_is_one_warning_and_left_out(
    job: Job, caplog: pytest.LogCaptureFixture, step: int, file: str
) -> None:
    if file == "manifest.json":
        (job.checkpoint(step) / file).write_text("{}")
    else:
        flip_a_bit(job.checkpoint(step) / file)
    assert not job.evaluate().timed_out
    assert job.found() == [value for value in job.expected() if value[0] != step]
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert f"step {step} is not evaluated: {job.checkpoint(step)}/{file}: damaged checkpoint" in warning


def test_a_checkpoint_made_anew_in_place_of_a_damaged_one_is_evaluated(job: Job) -> None:
    good = job.save_dir / "good"
    shutil.copytree(job.checkpoint(4), good)
    flip_a_bit(job.checkpoint(4) / "state.json")

    def mend() -> None:
        if not good.exists():
            return
        shutil.rmtree(job.checkpoint(4))
        good.rename(job.checkpoint(4))

    job.on_partition = mend
    job.evaluate()
    assert list(evaluated(job.metrics)) == [8, 4, 10]
    assert sorted(job.found(), key=lambda value: value[0]) == job.expected()


@pytest.mark.parametrize("while_reading", ["state.json", "__0_0.distcp"])
def test_a_checkpoint_that_vanishes_while_it_is_read_is_no_error(
    job: Job, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, while_reading: str
) -> None:
    caplog.set_level(logging.INFO)
    vanished = job.checkpoint(4)

    def rotated_away(path: Path) -> str:
        if path == vanished / while_reading:
            vanished.rename(vanished.with_name(".writing-4-deleting"))
        return file_digest(path)

    monkeypatch.setattr(checkpoint_reader, "file_digest", rotated_away)
    job.evaluate()
    assert job.found() == [value for value in job.expected() if value[0] > 4]
    assert f"{vanished} was removed before it was evaluated" in caplog.messages
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


def test_a_trainer_that_died_is_a_warning_after_eval_timeout_in_s(job: Job, caplog: pytest.LogCaptureFixture) -> None:
    shutil.rmtree(job.checkpoint(10))
    outcome = job.evaluate(eval_timeout_in_s=0.2)
    assert (outcome.stopped_by, outcome.timed_out) == (None, True)
    assert list(evaluated(job.metrics)) == [4, 8]
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert f"no checkpoint after step 8 came in {job.save_dir}/checkpoints within" in warning
    assert "training.eval_timeout_in_s (0.2 s)" in warning


def test_no_checkpoint_at_all_is_the_users_error_and_a_mistyped_directory_is_not_made(
    fresh: Job, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    place = f"{fresh.save_dir}/checkpoints"
    with pytest.raises(
        UserError, match=r"came in .*/run/checkpoints \(no such directory\) within .*\(0\.2 s\); is the"
    ):
        fresh.evaluate(eval_timeout_in_s=0.2)
    assert not fresh.save_dir.exists()
    fresh.checkpoint(4).parent.mkdir(parents=True)
    with pytest.raises(UserError, match=r"no checkpoint that is .* came in .*run/checkpoints within .*\(0\.2 s\)"):
        fresh.evaluate(eval_timeout_in_s=0.2)
    missing, empty = [message for message in caplog.messages if message.endswith(": 0 of at most 0.2 s")]
    told = f"waiting for a checkpoint after step 0 in {place}, "
    assert missing.startswith(f"{told}which does not exist; is training.save_dir that of the run?: ")
    assert empty.startswith(f"{told}where there is none yet: ")


def test_a_file_in_the_place_of_the_directory_is_refused_at_once(fresh: Job) -> None:
    fresh.save_dir.write_text("")
    with pytest.raises(UserError, match=r"training\.save_dir .*run: can't be written: Not a directory"):
        fresh.evaluate()


def test_a_signal_amid_a_partition_drops_it_and_the_next_start_goes_on(job: Job) -> None:
    begun: list[int] = []

    def kill_at_the_third() -> None:
        begun.append(1)
        if len(begun) == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    job.on_partition = kill_at_the_third
    assert job.evaluate().stopped_by == signal.SIGTERM
    assert evaluated(job.metrics) == {4: NAMES}
    assert job.evaluate().stopped_by is None
    assert job.found() == job.expected()


def test_a_signal_ends_the_wait(fresh: Job, when_logged: Callable[..., None]) -> None:
    when_logged("waiting for a checkpoint", lambda: os.kill(os.getpid(), signal.SIGINT))
    assert fresh.evaluate().stopped_by == signal.SIGINT


def test_a_directory_that_is_removed_ends_the_wait(fresh: Job, when_logged: Callable[..., None]) -> None:
    fresh.checkpoint(4).parent.mkdir(parents=True)
    when_logged("waiting for a checkpoint", lambda: shutil.rmtree(fresh.save_dir))
    with pytest.raises(UserError, match="was removed while it was in use"):
        fresh.evaluate()


def test_a_second_evaluator_and_a_run_that_starts_anew_are_refused(
    fresh: Job, when_logged: Callable[..., None]
) -> None:
    refused: list[str] = []

    def both() -> None:
        for act in (fresh.evaluate, lambda: fresh.train(overwrite_save_dir=True)):
            with pytest.raises(UserError) as raised:
                act()
            refused.append(str(raised.value))
        fresh.train()

    fresh.checkpoint(4).parent.mkdir(parents=True)
    when_logged("waiting for a checkpoint", both)
    fresh.evaluate()
    assert "another evaluator is at work here" in refused[0]
    assert "an evaluator of the earlier run is at work here" in refused[1]
    fresh.train(overwrite_save_dir=True)
    assert not fresh.metrics.exists()
    fresh.evaluate()
    assert fresh.found() == fresh.expected()


class Wide(ToyModel):
    def __init__(self) -> None:
        super().__init__(batch_norm=True)
        self.hidden = torch.nn.Linear(5, 9)


def test_a_checkpoint_of_another_model_is_an_error_that_lists_the_differences(job: Job) -> None:
    with pytest.raises(CheckpointError, match=r"hidden\.weight: \[8, 5\] in the checkpoint, \[9, 5\] in the model"):
        job.evaluate(Wide())
    assert job.found() == []


def test_a_run_of_another_configuration_is_an_error_that_lists_the_differences(job: Job) -> None:
    with pytest.raises(UserError, match=r"max_grad_norm: null in the run, 2\.0 now\nEvaluate it with the config"):
        job.evaluate(max_grad_norm=2.0)
    # What a run may change between a start and the next, the evaluator may have otherwise.
    job.evaluate(num_eval_steps=1, eval_every_n=0, train_log_every_n=7)


def test_nothing_to_evaluate_on_is_an_error(fresh: Job) -> None:
    with pytest.raises(UserError, match="nothing to evaluate on"):
        only_evaluate(fresh.config(), ToyModel(), fresh._reader, {}, ALONE)


def test_sinks_get_what_is_measured_and_none_stops_it(job: Job) -> None:
    good, bad = Remembering(), Remembering(fails=True)
    job.evaluate(trackers={"bad": lambda: bad, "good": lambda: good})
    assert values(good.measurements) == job.expected()
    assert (len(bad.measurements), good.finished, bad.finished) == (1, 1, 1)


def test_wandb_has_two_runs_in_one_group_and_each_point_once(fresh: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.tracking.trackers._FINISH_TIMEOUT_IN_S", 120.0)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    runtime = RuntimeConfig(seed=3, wandb=WandbConfig(project="recap"))
    fresh.train(runtime=runtime)
    (trainers,) = recorded(fresh.save_dir)
    before = set((fresh.save_dir / "wandb").glob("offline-run-*"))
    fresh.evaluate(runtime=runtime)
    # As if it had been killed between the mark and what it sends of it, and then amid the last partition.
    run_file = fresh.save_dir / "wandb-evaluator.json"
    told = json.loads(run_file.read_text())
    run_file.write_text(json.dumps({**told, "sent": {"evaluate/first": 10, "evaluate/second": 4}}))
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
    (of_trainer,) = [record["run"] for record in trainers if record["type"] == "run"]
    runs = [record["run"] for session in sessions for record in session if record["type"] == "run"]
    assert {run["run_id"] for run in runs} == {told["run_id"]} != {of_trainer["run_id"]}
    assert {run["run_group"] for run in [*runs, of_trainer]} == {of_trainer["run_id"]}
    assert of_trainer["job_type"] == "train"
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
