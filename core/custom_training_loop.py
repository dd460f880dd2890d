"""The entry points of the trainer: train() trains a model, and only_evaluate() evaluates the checkpoints of a run.

Each stage has its own module: core/run/session.py guards a run, core/run/start.py finds where it begins,
core/loop/trainer.py trains, and core/evaluation/follower.py evaluates what another process trains.
"""

import functools
import logging
from collections.abc import Callable, Mapping
from typing import Any, TypedDict, Unpack

import torch
from torch import nn

from common.distributed.world import World
from common.errors import UserError
from common.optimizers.learning_rate import LearningRateSchedule
from common.reader.reader import BatchReader
from common.tracking.measurement import Tracker
from common.tracking.trackers import build_trackers
from core.checkpoints.configured_retention import configured_retention
from core.config.training import JobConfig
from core.evaluation.follower import Follower, FollowerOutcome
from core.loop.trainer import Outcome, Trainer
from core.metrics.evaluation_set import EvaluationSet
from core.models.dense import as_distributed
from core.models.interface import DistributedModel
from core.run.agreement import check_components
from core.run.components import Components, TrainingComponents, TrainReader
from core.run.directory import FollowerDirectory, RunDirectory
from core.run.footprint import check_memory
from core.run.inputs import values_at
from core.run.metric_choices import check_metric_choices
from core.run.session import Session
from core.run.start import find_overwrite, find_start
from core.run.state import TrainingState, check_run_length

logger = logging.getLogger(__name__)

__all__ = ["FollowOptions", "FollowerOutcome", "Outcome", "TrainOptions", "only_evaluate", "train"]


class FollowOptions(TypedDict, total=False):
    """Optional arguments of only_evaluate()."""

    trackers: Mapping[str, Callable[[], Tracker]]
    """Functions that create trackers in addition to the metrics file and W&B, by name. Called on rank 0."""


class TrainOptions(FollowOptions, total=False):
    """Optional arguments of train()."""

    on_fresh_run: Callable[[], None] | None
    """Initializes the model of a fresh run, beyond its initial weights. A resume and a warm start skip it."""
    extra_metrics: Callable[[], Mapping[str, float]] | None
    """Returns additional train metrics; called whenever metrics are logged. Collective."""
    overwrite_save_dir: bool
    """Start over, deleting the run in save_dir. Has no effect when torchrun or a scheduler restarts the same launch."""


def train(
    config: JobConfig,
    model: nn.Module | DistributedModel,
    optimizer: torch.optim.Optimizer,
    learning_rates: LearningRateSchedule,
    train_reader: BatchReader[Any],
    evaluation_sets: Mapping[str, EvaluationSet],
    world: World,
    **options: Unpack[TrainOptions],
) -> Outcome:
    """Train until training.num_train_steps or training.num_epochs, whichever comes first. Collective.

    Another call with the same configuration continues from the newest checkpoint in training.save_dir, or returns
    immediately if no steps are left. With overwrite_save_dir, only another call in the same launch does.

    A stop signal, such as SIGTERM, ends training with a checkpoint, after a step that the ranks agree on. A second
    signal, or the end of runtime.grace_period_in_s, ends the process immediately.

    Args:
      config: configuration of the run.
      model: a core.models.interface.TrainableModel with its initial weights, on world.device and equal on all ranks, or
        a DistributedModel.
      optimizer: the optimizer of the model's parameters.
      learning_rates: the learning rates of all optimizers.
      train_reader: this rank's share of the training data.
      evaluation_sets: evaluation sets, by partition.
      world: rank of this process, world size and device.
      **options: see TrainOptions.

    Raises:
      UserError: save_dir, the data or an initial checkpoint cannot be used, or training has diverged. All ranks
        raise it.
      LostRankError: another rank died or does not respond.
    """
    _check_options("train", options, TrainOptions)
    components = TrainingComponents(
        config=config,
        model=as_distributed(model, world, deterministic=config.runtime.deterministic),
        optimizer=optimizer,
        learning_rates=learning_rates,
        train_reader=train_reader,
        evaluation_sets=evaluation_sets,
        world=world,
        **options,
    )
    directory = RunDirectory(config.training.save_dir)
    with Session(config.runtime, world, directory, overwrites=components.overwrite_save_dir) as session:
        check_components(components)
        train_reader.check_trainable()
        check_run_length(config.training, train_reader)
        world.consensus.on_all_ranks(functools.partial(check_memory, components))
        check_metric_choices(components)
        retention = configured_retention(config.training, directory)
        session.lock_save_dir()
        overwrite = find_overwrite(components, directory)
        with find_start(components, directory, retention, overwrites=overwrite.is_due) as start:
            state = start.restore_on_all_ranks(components)
        begin = functools.partial(directory.begin, config.pretty_print(), start.is_resumed, overwrite)
        world.consensus.on_rank_zero(begin)  # no file of an earlier run was changed before
        state.config = config.model_dump(mode="json")
        state.inputs = world.consensus.broadcast_from_rank_zero(
            lambda: directory.keep_inputs(values_at(state.config, config.input_files))
        )
        _open_trackers(components, session, directory, state)
        if start.summary:
            logger.info("%s", start.summary)
        components.model.replicate()
        return Trainer(components, session, directory, retention, state).fit()


def only_evaluate(
    config: JobConfig,
    model: nn.Module | DistributedModel,
    train_reader: TrainReader,
    evaluation_sets: Mapping[str, EvaluationSet],
    world: World,
    **options: Unpack[FollowOptions],
) -> FollowerOutcome:
    """Evaluate every checkpoint of the run in training.save_dir, in order, up to the last step. Collective.

    This can start before, during or after the run, and waits at most training.eval_timeout_in_s for the next
    checkpoint. It never creates save_dir. It skips partitions that an earlier call evaluated, even with other metrics
    or data. It also skips checkpoints that rotation deletes and, with a warning, damaged ones. A stop signal, such as
    SIGTERM, ends it and discards the current partition.

    Args:
      config: the configuration that the run is trained with.
      model: the model to load weights into, on world.device.
      train_reader: the training data. Its length determines the last step; nothing is read. A function that returns a
        rank's reader is called with rank 0 and the number of processes that the run was trained on.
      evaluation_sets: evaluation sets, by partition.
      world: rank of this process, world size and device.
      **options: see FollowOptions.

    Raises:
      UserError: save_dir or the data cannot be used, the checkpoints belong to another run, or none could be evaluated
        in time. All ranks raise it.
      LostRankError: another rank died or does not respond.
    """
    _check_options("only_evaluate", options, FollowOptions)
    components = Components(
        config=config,
        model=as_distributed(model, world),
        train_reader=train_reader,
        evaluation_sets=evaluation_sets,
        world=world,
        **options,
    )
    directory = FollowerDirectory(config.training.save_dir)
    with Session(config.runtime, world, directory) as session:
        check_components(components)
        if isinstance(train_reader, BatchReader):
            train_reader.check_trainable()
        if not evaluation_sets:
            raise UserError("nothing to evaluate on: the configuration has no validation data")
        follower = Follower(components, session, directory)
        if (outcome := follower.wait_for_run()) is not None:
            return outcome
        session.lock_save_dir()
        return follower.follow()


def _check_options(function: str, options: Mapping[str, Any], known: type) -> None:
    """Raise TypeError for keyword arguments that a function does not have."""
    if unknown := sorted(options.keys() - known.__annotations__.keys()):
        names = ", ".join(sorted(known.__annotations__))
        raise TypeError(f"{function}() got unexpected keyword argument(s) {', '.join(unknown)}; it has: {names}")


def _open_trackers(
    components: TrainingComponents, session: Session, directory: RunDirectory, state: TrainingState
) -> None:
    """Open the trackers of the run. Collective."""
    config = components.config
    build = functools.partial(
        build_trackers,
        directory.path,
        config.runtime.wandb,
        config.model_dump(mode="json"),
        last_step=state.step,
        run_id=state.tracker_run_id,
        may_write=directory.may_write,
    )
    session.open_trackers(build, components.trackers)
    state.tracker_run_id = session.trackers.run_id
