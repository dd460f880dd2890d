"""Runs a project's command: opens the data, builds the job, and trains or evaluates.

A project provides its data, model and metrics as a Project. core.command_line reads the command.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from common.distributed.world import World, joined_world
from common.numerics import set_deterministic, set_precision
from common.optimizers.learning_rate import LearningRateSchedule
from common.process.environment import strangers_can_join
from common.process.rerun import how_to_continue
from common.process.standard_streams import print_report
from common.process.stop_signals import leave_signals_to_python
from common.reader.footprint import check_memory
from common.reader.reader import BatchReader
from common.tracking.measurement import Measurement, Tracker
from core import custom_training_loop, debug_training_loop
from core.checkpoints.chosen import find_best
from core.closing_report import closing_report
from core.command_line import Command
from core.config.training import JobConfig
from core.metrics.evaluation_set import EvaluationSet
from core.models.interface import DistributedModel
from core.run.agreement import check_agreement, library_versions
from core.run.components import TrainReader
from core.run.directory import FollowerDirectory, RunDirectory
from core.run.early_stopping import BestEvaluation
from core.run.lost_rank import report_lost_rank

C = TypeVar("C", bound=JobConfig)
D = TypeVar("D")


@dataclass(frozen=True)
class Job:
    """A training or evaluation job that a project has built, the same on all ranks.

    Attributes:
      model: a core.models.interface.TrainableModel on its device with its initial weights, or a DistributedModel.
      train_reader: this rank's share of the training data, or a function that returns it from rank and world size. A
        function lets an evaluation run on a number of processes that training batches do not allow.
      evaluation_sets: evaluation sets, by partition.
      make_optimizer: builds the optimizer of the model's parameters and the learning rates. Not called for an
        evaluation.
      on_fresh_run: initializes the model of a fresh run, beyond its initial weights.
      extra_metrics: returns additional train metrics; called whenever metrics are logged. Collective.
      trackers: functions that create trackers in addition to the metrics file and W&B, by name. Called on rank 0, in
        the trainer and in the follower.
    """

    model: nn.Module | DistributedModel
    train_reader: TrainReader
    evaluation_sets: Mapping[str, EvaluationSet]
    make_optimizer: Callable[[], tuple[torch.optim.Optimizer, LearningRateSchedule]]
    on_fresh_run: Callable[[], None] | None = None
    extra_metrics: Callable[[], Mapping[str, float]] | None = None
    trackers: Mapping[str, Callable[[], Tracker]] = field(default_factory=dict)


@dataclass(frozen=True)
class Project(Generic[C, D]):
    """Describes a project to the program that trains it.

    Attributes:
      open_data: opens the data sets. Raises UserError if they are invalid, before a process group or a GPU is used.
      build: builds the job from a configuration and its data. Collective.
      metrics_table: formats an evaluation's metrics as a readable table.
      check_batching: raises ConfigError if this number of processes cannot train on the configured batches. Not called
        for an evaluation.
      identify_data: returns JSON values that identify the opened data. All ranks must return the same.
      readers: returns rank 0's readers of the opened data by key path, to check the memory that they need: the training
        data first, but only if the last argument, whether the program trains, is true.
      group_of_one: whether the model needs a process group even in a world of one.
      complete_config: returns the configuration with what it leaves to the training data, before anything else uses it.
        All ranks must return the same.
    """

    open_data: Callable[[C], D]
    build: Callable[[C, D, World], Job]
    metrics_table: Callable[[Measurement], str]
    check_batching: Callable[[C], None] = field(default=lambda _: None, kw_only=True)
    identify_data: Callable[[D], Mapping[str, Any]] = field(default=lambda _: {}, kw_only=True)
    readers: Callable[[C, D, bool], Mapping[str, BatchReader[Any]]] = field(default=lambda *_: {}, kw_only=True)
    group_of_one: bool = field(default=False, kw_only=True)
    complete_config: Callable[[C], C] = field(default=lambda config: config, kw_only=True)


def run_project(project: Project[C, D], command: Command[C]) -> int:
    """Check the data, train or evaluate, and report the results.

    Returns:
      The exit status: 0, including after a signal; 1 if the last checkpoint could not be written, or if the follower
      timed out waiting for a checkpoint.

    Raises:
      UserError: the configuration, environment or data is invalid. All ranks raise it.
    """
    trains = command.mode == "train"
    if trains:
        project.check_batching(command.config)
    # Report errors in the data before a process group or a GPU is used.
    command = replace(command, config=project.complete_config(command.config))
    config = command.config
    data = project.open_data(config)
    check_memory(project.readers(config, data, trains), trains=trains)
    set_precision(config.runtime.enable_tensorfloat32)
    set_deterministic(config.runtime.deterministic)
    directory = RunDirectory(config.training.save_dir)
    world_of_command = joined_world(
        config.runtime.process_group_timeout_in_s,
        group_of_one=project.group_of_one,
        flight_record=directory.path / "flight-recorder-rank-",
        identity=_launch_identity(command, directory),
    )
    advice = how_to_continue()
    # The training loop describes more precisely what it is doing.
    with (
        world_of_command as world,
        report_lost_rank(world, lambda: "starting or ending", directory.checkpoints, advice),
    ):
        with report_lost_rank(world, lambda: "building the model", directory.checkpoints, advice):
            _check_ranks(project, command, data, world)
            job = project.build(config, data, world)
        if command.mode == "evaluate":
            return _evaluate(project, config, job, world)
        return _train(project, command, job, world)


def _launch_identity(command: Command[C], directory: RunDirectory) -> dict[str, str]:
    """Return what distinguishes this launch from others at the same address, if their processes can meet.

    Otherwise, _check_ranks() reports a difference on all ranks.
    """
    if not strangers_can_join():
        return {}
    return {
        "the program": type(command.config).__module__.removesuffix(".config"),
        "--mode": "debug" if command.debug_loop else command.mode,
        "training.save_dir": str(directory.path.absolute()),
    }


def _check_ranks(project: Project[C, D], command: Command[C], data: D, world: World) -> None:
    """Raise UserError on all ranks if they differ in what building the job depends on. Collective."""
    options = {f"--{name}": getattr(command, name) for name in ("mode", "overwrite_save_dir", "debug_loop")}
    facts = options | {"versions": library_versions()}
    check_agreement(world, lambda: [command.config.model_dump(mode="json"), facts, dict(project.identify_data(data))])


def _train(project: Project[C, D], command: Command[C], job: Job, world: World) -> int:
    optimizer, learning_rates = job.make_optimizer()
    reader = job.train_reader
    train_reader = reader if isinstance(reader, BatchReader) else reader(world.rank, world.size)
    arguments = (command.config, job.model, optimizer, learning_rates, train_reader, job.evaluation_sets, world)
    if command.debug_loop:
        if job.on_fresh_run is not None:
            job.on_fresh_run()
        leave_signals_to_python()
        debug_training_loop.train(*arguments)
        return 0
    outcome = custom_training_loop.train(
        *arguments,
        on_fresh_run=job.on_fresh_run,
        extra_metrics=job.extra_metrics,
        trackers=job.trackers,
        overwrite_save_dir=command.overwrite_save_dir,
    )
    if world.is_rank_zero:
        _report(project, command.config, outcome.directory, outcome.directory.config, outcome.best)
    return outcome.exit_status


def _evaluate(project: Project[C, D], config: C, job: Job, world: World) -> int:
    outcome = custom_training_loop.only_evaluate(
        config, job.model, job.train_reader, job.evaluation_sets, world, trackers=job.trackers
    )
    if world.is_rank_zero:
        _report(project, config, outcome.directory, None, None)
    return 1 if outcome.timed_out else 0  # 1, so that a supervisor starts it again


def _report(
    project: Project[C, D],
    config: C,
    directory: RunDirectory | FollowerDirectory,
    resolved_config: Path | None,
    best: BestEvaluation | None,
) -> None:
    """Print the closing report. A best evaluation that the program does not know is found in the metrics file."""
    best = best or find_best(config.training, [directory.metrics], directory.checkpoints)
    print_report(closing_report(project.metrics_table, directory.checkpoints, directory.metrics, resolved_config, best))
