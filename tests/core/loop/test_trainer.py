"""The trainer between steps: logs, checkpoints, evaluations, stop signals, and a resume after each of them.

tests/core/test_custom_training_loop.py compares the steps with a loop written by hand.
"""

import logging
import shutil
import signal
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from common.checkpointing.directory import complete_steps
from common.checkpointing.reader import read_state, read_tensors
from common.checkpointing.retention import CheckpointRetention
from common.errors import UserError
from common.tracking.measurement import Measurement, Tracker
from common.tracking.metrics_file import MetricsFile, read_metrics
from core.config.training import JobConfig, RuntimeConfig, TrainingConfig
from core.custom_training_loop import Outcome, train
from core.metrics.evaluation_set import EvaluationSet
from core.metrics.interface import Metrics
from core.metrics.multi_task import MultiTaskMetrics
from tests.support.toy import MemoryTracker, rows_reader, toy_components

PARTITIONS = ["first", "second"]


class Run:
    """A run of 10 steps with a checkpoint every 4, an evaluation of two partitions with each, and a log every 2."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(exist_ok=True)
        self.directory = directory
        self.evaluation_sets = {name: self._evaluation_set(name) for name in PARTITIONS}
        self.on_partition: Callable[[str], None] = lambda _: None
        """Called with each partition whose evaluation begins."""

    @property
    def checkpoints(self) -> Path:
        return self.directory / "run/checkpoints"

    @property
    def metrics(self) -> Path:
        return self.directory / "run/metrics.jsonl"

    def train(
        self,
        trackers: Mapping[str, Callable[[], Tracker]] | None = None,
        extra_metrics: Callable[[], dict[str, float]] | None = None,
        **training: Any,
    ) -> Outcome:
        """Start the run, or continue it."""
        components = toy_components(self.directory, **({"train_log_every_n": 2} | training))
        return train(
            components.config,
            components.model,
            components.optimizer,
            components.learning_rates,
            components.train_reader,
            self.evaluation_sets,
            components.world,
            trackers=trackers or {},
            extra_metrics=extra_metrics,
        )

    def _evaluation_set(self, partition: str) -> EvaluationSet:
        def metrics(device: torch.device) -> Metrics:
            self.on_partition(partition)
            return MultiTaskMetrics(["a", "b"], device)

        return EvaluationSet(rows_reader(self.directory), metrics)

    def measurements(self) -> list[Measurement]:
        return read_metrics(self.metrics)

    def measured(self) -> list[tuple[int, str, str | None]]:
        return [(m.step, m.mode, m.partition) for m in self.measurements()]

    def evaluations(self) -> list[tuple[int, str | None]]:
        return [(step, partition) for step, mode, partition in self.measured() if mode == "evaluate"]

    def remove_measurements(self, *evaluations: tuple[int, str]) -> None:
        """Rewrite the metrics file without some evaluations, as if the run was killed before them."""
        kept = [m for m in self.measurements() if (m.step, m.partition) not in evaluations]
        self.metrics.unlink()
        file = MetricsFile(self.metrics)
        for measurement in kept:
            file.append(measurement)
        file.close()

    def assert_equal_weights(self, other: "Run") -> None:
        """Check that two runs end with weights and optimizer states that are equal bit for bit."""
        saved, expected = (read_tensors(run.checkpoints / "10") for run in (self, other))
        assert saved.keys() == expected.keys()
        assert all(torch.equal(saved[name], tensor) for name, tensor in expected.items())

    def assert_equals(self, other: "Run") -> None:
        """Check that two runs end with the same weights and have measurements that are equal bit for bit."""
        self.assert_equal_weights(other)
        found, expected = ({(m.step, m.partition): m.metrics for m in run.measurements()} for run in (self, other))
        assert found == expected
        assert len(self.measurements()) == len(other.measurements())


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "tested")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run(tmp_path_factory.mktemp("uninterrupted"))
    run.train()
    return run


def both(step: int) -> list[tuple[int, str | None]]:
    return [(step, name) for name in PARTITIONS]


def test_logs_checkpoints_and_evaluations_come_at_their_steps(run: Run) -> None:
    outcome = run.train(train_log_every_n=3)
    assert run.measured() == [
        (3, "train", None),
        *((4, "evaluate", name) for name in PARTITIONS),
        (6, "train", None),
        *((8, "evaluate", name) for name in PARTITIONS),
        (9, "train", None),
        (10, "train", None),
        *((10, "evaluate", name) for name in PARTITIONS),
    ]
    assert complete_steps(run.checkpoints) == [4, 8, 10]
    assert (outcome.step, outcome.stopped_by, outcome.is_saved) == (10, None, True)
    assert outcome.checkpoint == run.checkpoints / "10"
    assert outcome.directory.path == run.directory / "run"


def test_gradient_accumulation_takes_several_batches_per_step(run: Run) -> None:
    run.train(gradient_accumulation=3, num_train_steps=3, checkpoint_every_n=100)
    assert read_state(run.checkpoints / "3")["progress"]["position"] == {"epoch": 0, "cursors": [3 * 3 * 4] * 4}


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"eval_every_n": 0}, []),
        ({"eval_every_n": 3}, [3, 6, 9, 10]),
        ({"eval_every_n": None}, [4, 8, 10]),
        ({"eval_every_n": None, "checkpoint_every_n": 5}, [5, 10]),
    ],
)
def test_eval_every_n_decides_when_to_evaluate(run: Run, options: dict[str, Any], steps: list[int]) -> None:
    run.train(**options)
    assert run.evaluations() == [evaluation for step in steps for evaluation in both(step)]


@pytest.mark.parametrize("missed", [[(8, "second")], [(8, "first"), (8, "second")]])
def test_a_resume_catches_up_on_a_missed_evaluation(
    run: Run, uninterrupted: Run, missed: list[tuple[int, str]]
) -> None:
    """The run was killed during the evaluation, after its checkpoint was saved."""
    run.train(num_train_steps=8)
    run.remove_measurements(*missed)
    begun: list[str] = []
    run.on_partition = begun.append
    run.train(num_train_steps=8)
    assert begun == [name for _, name in missed], "and no other evaluation is repeated"
    assert sorted(run.evaluations()) == both(4) + both(8)
    run.train()
    run.assert_equals(uninterrupted)


def test_an_evaluation_that_was_not_due_is_not_caught_up_on(run: Run) -> None:
    run.train(num_train_steps=8, eval_every_n=0)
    begun: list[str] = []
    run.on_partition = begun.append
    run.train(eval_every_n=5)
    assert run.evaluations() == both(10)
    assert begun == PARTITIONS


def test_a_fresh_run_does_not_evaluate_its_initial_weights(run: Run) -> None:
    run.train(num_train_steps=1, eval_every_n=1)
    assert run.evaluations() == both(1)


@pytest.mark.parametrize(
    ("limits", "key"), [({"num_train_steps": 3}, "num_train_steps"), ({"num_train_steps": 99}, "num_epochs")]
)
def test_a_finished_run_trains_no_step_and_names_its_limit(
    run: Run, caplog: pytest.LogCaptureFixture, limits: dict[str, Any], key: str
) -> None:
    steps = min(limits["num_train_steps"], 200 // 16)
    run.train(**limits)
    before = run.metrics.read_bytes()
    with caplog.at_level(logging.INFO):
        outcome = run.train(**limits)
    (message,) = [message for message in caplog.messages if message.startswith("finished")]
    assert f"all {steps} steps" in message
    assert f"training.{key} " in message
    assert (outcome.step, outcome.stopped_by, outcome.exit_status) == (steps, None, 0)
    assert outcome.checkpoint == run.checkpoints / str(steps)
    assert run.metrics.read_bytes() == before


def test_lowering_num_train_steps_ends_a_run_where_it_is(run: Run) -> None:
    run.train()
    assert run.train(num_train_steps=5).step == 10


def at_log(number: int, action: Callable[[], object]) -> Callable[[], dict[str, float]]:
    """Return extra metrics that run an action at one of the train logs, counted from 1."""
    logs = 0

    def extra_metrics() -> dict[str, float]:
        nonlocal logs
        logs += 1
        if logs == number:
            action()
        return {}

    return extra_metrics


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_during_a_step_ends_with_a_checkpoint_and_the_next_start_continues(
    run: Run,
    uninterrupted: Run,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    number: signal.Signals,
) -> None:
    """The batch of step 7 is ready when the signal arrives after step 6, so that step is trained."""
    monkeypatch.setattr("core.loop.feed._SECONDS_PER_EXCHANGE", 1e-9)  # an exchange of flags at each step
    caplog.set_level(logging.INFO)
    outcome = run.train(extra_metrics=at_log(3, lambda: signal.raise_signal(number)))
    assert (outcome.step, outcome.stopped_by, outcome.is_saved, outcome.exit_status) == (7, number, True, 0)
    assert outcome.checkpoint == run.checkpoints / "7"
    assert [message for message in caplog.messages if message.startswith(f"stopped by {number.name} after step 7")]
    assert run.train().stopped_by is None
    run.assert_equals(uninterrupted)


def test_a_signal_during_an_evaluation_saves_its_step_and_drops_the_partition(run: Run, uninterrupted: Run) -> None:
    def stop(partition: str) -> None:
        if partition == "second":
            signal.raise_signal(signal.SIGTERM)

    run.on_partition = stop
    outcome = run.train(eval_every_n=6)
    assert (outcome.step, outcome.stopped_by, outcome.is_saved) == (6, signal.SIGTERM, True)
    assert complete_steps(run.checkpoints) == [4, 6]
    assert run.evaluations() == [(6, "first")]
    run.on_partition = lambda _: None
    run.train(eval_every_n=6)
    assert run.evaluations() == [*both(6), *both(10)]
    run.assert_equal_weights(uninterrupted)


def test_a_signal_during_a_caught_up_evaluation_trains_no_step(run: Run) -> None:
    run.train(num_train_steps=8)
    run.remove_measurements((8, "second"))
    run.on_partition = lambda _: signal.raise_signal(signal.SIGTERM)
    outcome = run.train()
    assert (outcome.step, outcome.stopped_by, outcome.exit_status) == (8, signal.SIGTERM, 0)
    assert run.evaluations() == [*both(4), (8, "first")]


def test_extra_metrics_are_computed_at_each_log_and_only_then(run: Run) -> None:
    calls: list[None] = []

    def extra_metrics() -> dict[str, float]:
        calls.append(None)
        return {"norm/user": float(len(calls))}

    run.train(extra_metrics=extra_metrics)
    logged = [m.metrics["norm/user"] for m in run.measurements() if m.mode == "train"]
    assert logged == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert len(calls) == 5
    assert all("norm/user" not in m.metrics for m in run.measurements() if m.mode == "evaluate")


def test_trackers_and_the_metrics_file_have_the_same_measurements(run: Run) -> None:
    tracker = MemoryTracker()
    run.train(trackers={"memory": lambda: tracker})
    assert tracker.measurements == run.measurements()
    assert tracker.finished == 1
    for measurement in tracker.measurements:
        if measurement.mode == "train":
            assert measurement.metrics.keys() == {"loss", "skipped_updates", "learning_rate/all"}
            assert measurement.timing.keys() == {"seconds", "examples_per_second", "data_wait_share"}


class Clock:
    """Stands in for the time module. Only the test advances it."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


def test_timing_covers_one_window_without_its_evaluations(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps of 16 examples and their log take 5 s. Each evaluated partition takes 100 s."""
    clock = Clock()
    monkeypatch.setattr("core.loop.window.time", clock)

    def advance(seconds: float) -> None:
        clock.now += seconds

    def extra_metrics() -> dict[str, float]:
        advance(5.0)
        return {}

    run.on_partition = lambda _: advance(100.0)
    run.train(extra_metrics=extra_metrics)
    timings = [m.timing for m in run.measurements() if m.mode == "train"]
    assert [timing["seconds"] for timing in timings] == [5.0] * 5
    assert [timing["examples_per_second"] for timing in timings] == [6.4] * 5


def test_a_resume_restores_the_loss_scale(run: Run) -> None:
    """The scaler counts the steps since its scale last changed."""
    runtime = RuntimeConfig(enable_amp=True, amp_dtype="float16")

    def scaler(step: int) -> dict[str, Any]:
        training = TrainingConfig(save_dir=str(run.directory / "run"), num_train_steps=step, checkpoint_every_n=100)
        run.train(config=JobConfig(training=training, runtime=runtime))
        state: dict[str, Any] = read_state(run.checkpoints / str(step))["scaler"]
        return state

    before, after = scaler(4), scaler(7)
    assert before["_growth_tracker"] == 4
    assert after == before | {"_growth_tracker": 7}


def test_a_save_dir_that_is_removed_ends_the_run_at_the_next_save(run: Run) -> None:
    with pytest.raises(UserError, match=rf"{run.directory}/run.*removed"):
        run.train(extra_metrics=at_log(1, lambda: shutil.rmtree(run.directory / "run")))


def test_rotation_runs_once_more_after_the_last_evaluation(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Step 2 is the best one until step 10 is evaluated, after the save of step 10 has rotated."""
    values = iter([0.0, 5.0, 1.0, 1.0, 1.0, 9.0])  # the first is for the names of the metrics
    step_10_has_rotated = threading.Event()
    rotate = CheckpointRetention.rotate

    def rotate_and_report(retention: CheckpointRetention, saved: int) -> None:
        rotate(retention, saved)
        if saved == 10:
            step_10_has_rotated.set()

    monkeypatch.setattr(CheckpointRetention, "rotate", rotate_and_report)

    class ScriptedMetrics:
        headline = ("quality",)

        def update(self, outputs: Any) -> None:
            pass

        def compute(self) -> dict[str, float | int | None]:
            quality = next(values)
            if quality == 9.0:
                assert step_10_has_rotated.wait(60)
                assert complete_steps(run.checkpoints) == [2, 8, 10]
            return {"quality": quality, "examples": 1}

    run.evaluation_sets = {"rows": EvaluationSet(rows_reader(run.directory), lambda _: ScriptedMetrics())}
    keep_best = {"partition": "rows", "metric": "quality", "mode": "max"}
    run.train(checkpoint_every_n=2, checkpoint_max_to_keep=2, checkpoint_keep_best=keep_best)
    assert {m.step: m.metrics["quality"] for m in run.measurements() if m.mode == "evaluate"} == {
        2: 5.0,
        4: 1.0,
        6: 1.0,
        8: 1.0,
        10: 9.0,
    }
    assert complete_steps(run.checkpoints) == [8, 10]


@pytest.mark.parametrize("at_log", [2, 3])
def test_a_run_whose_directory_was_claimed_by_another_run_ends_and_writes_nothing_more(
    run: Run, monkeypatch: pytest.MonkeyPatch, at_log: int
) -> None:
    """A log follows each second step, and a save follows step 4."""
    logs: list[int] = []
    step_4_is_saved = threading.Event()
    monkeypatch.setattr(CheckpointRetention, "rotate", lambda *_: step_4_is_saved.set())

    def claim_at_log() -> dict[str, float]:
        logs.append(2 * len(logs) + 2)
        if len(logs) == at_log:
            assert at_log == 2 or step_4_is_saved.wait(60)
            (run.directory / "run/.lock.holder").write_text("process 7 on another-host, 0123 another-host:7:1:2:3\n")
        return {}

    with pytest.raises(UserError, match="process 7 on another-host has claimed this directory since"):
        run.train(extra_metrics=claim_at_log)
    assert complete_steps(run.checkpoints) == ([4] if at_log == 3 else [])
    assert [step for step, _, partition in run.measured() if partition is None] == logs[: at_log - 1]
    assert max(logs) < 10, "it does not wait for the next save"
    run.train()  # the directory is free again
    assert run.measured()[-1][0] == 10
