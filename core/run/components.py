"""Defines the components of a run: everything that train() and only_evaluate() receive from a project."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch

from common.distributed.world import World
from common.errors import ConfigError
from common.optimizers.learning_rate import LearningRateSchedule
from common.reader.reader import BatchReader
from common.tracking.measurement import Tracker
from core.config.training import JobConfig
from core.metrics.evaluation_set import EvaluationSet
from core.models.interface import DistributedModel
from core.run.identity import run_identity

TrainReader = BatchReader[Any] | Callable[[int, int], BatchReader[Any]]
"""Training data of a follower: a reader or, if its lanes or batches depend on the number of processes, a function that
returns a rank's reader from its rank and the number of processes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Components:
    """The components that a trainer and its follower share.

    Attributes:
      config: configuration of the run.
      model: the model on all ranks.
      train_reader: the training data.
      evaluation_sets: evaluation sets, by partition.
      world: rank of this process, world size and device.
      trackers: functions that create additional trackers, by name. Called on rank 0.
    """

    config: JobConfig
    model: DistributedModel
    train_reader: TrainReader
    evaluation_sets: Mapping[str, EvaluationSet]
    world: World
    trackers: Mapping[str, Callable[[], Tracker]] = dataclasses.field(default_factory=dict)

    def train_reader_on(self, world_size: int) -> BatchReader[Any]:
        """Return the training data as rank 0 of a run on `world_size` processes reads it."""
        return self.train_reader if isinstance(self.train_reader, BatchReader) else self.train_reader(0, world_size)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingComponents(Components):
    """All components of a trainer.

    Attributes:
      train_reader: this rank's share of the training data.
      optimizer: the optimizer of the model's parameters.
      learning_rates: the learning rates of all optimizers.
      on_fresh_run: initializes the model of a fresh run, beyond its initial weights. Not called for a resume or a warm
        start.
      extra_metrics: returns additional train metrics; called whenever metrics are logged. Collective.
      overwrite_save_dir: start over, deleting the run in save_dir.
    """

    train_reader: BatchReader[Any]
    optimizer: torch.optim.Optimizer
    learning_rates: LearningRateSchedule
    on_fresh_run: Callable[[], None] | None = None
    extra_metrics: Callable[[], Mapping[str, float]] | None = None
    overwrite_save_dir: bool = False

    def __post_init__(self) -> None:
        """Raise ConfigError if the configuration asks for something that the model cannot do."""
        if self.config.training.ema_decay is not None and self.model.has_sharded_tables:
            raise ConfigError(
                "training.ema_decay: the rows of sharded tables have optimizers of their own, and no moving average. "
                "Remove this key"
            )

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """The identity of this run (core/run/identity.py)."""
        return run_identity(self.config, self.train_reader)
