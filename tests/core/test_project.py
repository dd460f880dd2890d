"""Runs a toy project in this process, and checks what reaches the trainer, the follower and the report."""

import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pydantic
import pytest
import torch

from common.batch import Batch
from common.distributed.world import World
from common.errors import ConfigError, UserError
from common.optimizers.config import LearningRate
from common.optimizers.learning_rate import LearningRateSchedule, ParameterGroupScheduler
from common.reader.reader import BatchReader
from common.tracking.measurement import Measurement
from core.command_line import read_command
from core.config.training import JobConfig
from core.metrics.evaluation_set import EvaluationSet
from core.metrics.multi_task import MultiTaskMetrics
from core.project import Job, Project, run_project
from tests.support.toy import MemoryTracker, ToyBatch, ToyModel, rows_reader


class ToyConfig(JobConfig):
    """The configuration of the toy project."""

    data: str = pydantic.Field(description="Directory of the data.")


class Program:
    """The program of the toy project, with a record of what it did."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory = directory
        self.save_dir = directory / "run"
        self.events: list[str] = []
        self.trackers: list[MemoryTracker] = []
        self.readers: Callable[[ToyConfig, Any, bool], Mapping[str, BatchReader[Any]]] = lambda *_: {}
        self._monkeypatch = monkeypatch
        self._config = directory / "config.yaml"
        self._config.write_text(
            f"training: {{save_dir: {self.save_dir}, num_train_steps: 6, checkpoint_every_n: 3, train_log_every_n: 2, "
            f"eval_timeout_in_s: 0.1}}\ndata: {directory}\n"
        )

    def __call__(self, *arguments: str) -> int:
        """Run the program. Each run has a tracker of its own."""
        self.events.clear()
        argv = ["toy", "--config", str(self._config), *arguments]
        self._monkeypatch.setattr(sys, "argv", argv)
        table = "table of step {0.step}".format
        project = Project(self._open_data, self._build, table, readers=lambda *arguments: self.readers(*arguments))
        return run_project(project, read_command("projects.toy.main", "Trains a toy.", ToyConfig))

    def _open_data(self, config: ToyConfig) -> BatchReader[ToyBatch]:
        self.events.append("open_data")
        if not Path(config.data).is_dir():
            raise UserError(f"{config.data}: no such directory")
        return rows_reader(Path(config.data))

    def _build(self, config: ToyConfig, data: BatchReader[ToyBatch], world: World) -> Job:
        self.events.append("build")
        model = ToyModel()

        def make_optimizer() -> tuple[torch.optim.Optimizer, LearningRateSchedule]:
            self.events.append("make_optimizer")
            optimizer = torch.optim.Adam([{"params": list(model.parameters()), "name": "all"}])
            return optimizer, ParameterGroupScheduler(optimizer, [LearningRate(constant=0.01)])

        def make_tracker() -> MemoryTracker:
            self.trackers.append(MemoryTracker())
            return self.trackers[-1]

        assert world.size == 1
        assert config.training.save_dir == str(self.save_dir)
        return Job(
            model=model,
            train_reader=data,
            evaluation_sets={"rows": EvaluationSet(data, lambda device: MultiTaskMetrics(["a", "b"], device))},
            make_optimizer=make_optimizer,
            on_fresh_run=lambda: self.events.append("on_fresh_run"),
            extra_metrics=lambda: {"norm": 2.0},
            trackers={"memory": make_tracker},
        )


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    return Program(tmp_path, monkeypatch)


def steps(measurements: list[Measurement], mode: str) -> list[int]:
    return [measurement.step for measurement in measurements if measurement.mode == mode]


def test_the_trackers_of_a_job_reach_the_trainer_and_the_follower(program: Program) -> None:
    assert program() == 0
    assert program("--mode", "evaluate") == 0
    trainer, follower = program.trackers
    assert (steps(trainer.measurements, "train"), steps(trainer.measurements, "evaluate")) == ([2, 4, 6], [3, 6])
    assert (steps(follower.measurements, "train"), steps(follower.measurements, "evaluate")) == ([], [3, 6])
    evaluated = [[m.metrics for m in tracker.measurements if m.mode == "evaluate"] for tracker in program.trackers]
    assert evaluated[0] == evaluated[1]
    assert (trainer.finished, follower.finished) == (1, 1)


def test_a_fresh_run_is_initialized_and_a_resume_is_not(program: Program) -> None:
    assert program("--set", "training.num_train_steps=3") == 0
    assert program.events == ["open_data", "build", "make_optimizer", "on_fresh_run"]
    assert program() == 0
    assert program.events == ["open_data", "build", "make_optimizer"]
    assert steps(program.trackers[-1].measurements, "train") == [4, 6]
    assert program("--overwrite_save_dir") == 0
    assert program.events[-1] == "on_fresh_run"
    assert steps(program.trackers[-1].measurements, "train") == [2, 4, 6]


def test_extra_metrics_of_a_job_are_logged(program: Program) -> None:
    assert program() == 0
    train = [measurement for measurement in program.trackers[0].measurements if measurement.mode == "train"]
    assert [measurement.metrics["norm"] for measurement in train] == [2.0] * 3


def test_the_report_has_the_newest_metrics_and_where_all_results_are(
    program: Program, capsys: pytest.CaptureFixture[str]
) -> None:
    assert program() == 0
    report = capsys.readouterr().out
    assert "rows after step 6: 200 examples\ntable of step 6\n" in report
    assert "step 3" not in report
    for path in ("checkpoints", "metrics.jsonl", "config.yaml"):
        assert f"{program.save_dir}/{path}\n" in report
    assert program("--mode", "evaluate") == 0
    report = capsys.readouterr().out
    assert "rows after step 6: 200 examples\ntable of step 6\n" in report
    assert f"{program.save_dir}/metrics-evaluator.jsonl\n" in report


def test_a_follower_needs_no_optimizer_and_initializes_nothing(program: Program) -> None:
    program()
    assert program("--mode", "evaluate") == 0
    assert program.events == ["open_data", "build"]


def test_a_follower_whose_trainer_is_dead_exits_with_1(program: Program) -> None:
    assert program("--set", "training.num_train_steps=3") == 0
    assert program("--mode", "evaluate") == 1
    assert steps(program.trackers[-1].measurements, "evaluate") == [3]


@pytest.fixture
def _signal_handlers_as_before() -> Iterator[None]:
    """Restore the handlers that the debug loop leaves to Python."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("_signal_handlers_as_before")
def test_the_debug_loop_writes_nothing_and_uses_no_trackers(program: Program) -> None:
    assert program("--debug_loop") == 0
    assert program.events == ["open_data", "build", "make_optimizer", "on_fresh_run"]
    assert program.trackers == []
    assert not program.save_dir.exists()


def test_bad_data_is_an_error_before_the_job_is_built(program: Program) -> None:
    with pytest.raises(UserError, match=f"{program.directory}/nowhere"):
        program("--set", f"data={program.directory}/nowhere")
    assert program.events == ["open_data"]
    assert not program.save_dir.exists()


@pytest.mark.parametrize(("arguments", "trains"), [((), True), (("--mode", "evaluate"), False)])
def test_the_memory_of_readers_is_checked_before_the_model_is_built(
    program: Program, arguments: tuple[str, ...], trains: bool
) -> None:
    def readers(config: ToyConfig, data: BatchReader[ToyBatch], is_training: bool) -> dict[str, BatchReader[Any]]:
        assert (config.data, is_training) == (str(program.directory), trains)
        huge = BatchReader(data.table, lambda *_: Batch(), global_batch_size=10**15, lanes=1)
        return {"train_data" if trains else "validation_data.rows": huge}

    program.readers = readers
    with pytest.raises(ConfigError, match=r"_data.*: reading needs [\d,.]+ GiB, but this .*Lower global_batch_size"):
        program(*arguments)
    assert program.events == ["open_data"]


def test_the_report_shows_the_best_step_and_a_run_that_is_finished_repeats_it(
    program: Program, capsys: pytest.CaptureFixture[str]
) -> None:
    # Nothing improves by more than 100, so the first evaluation stays the best.
    choice = "{partition: rows, metric: mean/loss, mode: min, patience: 5, min_delta: 100}"
    arguments = ("--set", f"training.early_stopping={choice}")
    reports = []
    for mode in ("train", "train", "evaluate"):
        assert program(*arguments, "--mode", mode) == 0
        reports.append(capsys.readouterr().out)
    assert reports[0] == reports[1]
    for report in reports:
        assert "rows after step 3, the best: 200 examples\ntable of step 3\n" in report
        assert "table of step 6" not in report
        assert report.count(f"({program.save_dir}/checkpoints/3)\nlast           step 6, mean/loss on rows ") == 1
