"""Saves the state of a training run as checkpoints, and rotates them."""

import logging
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from common.checkpointing.policy import CheckpointPolicy
from common.checkpointing.storage import write_checkpoint
from common.device import World
from core.parallel import share_buffers, unwrap
from core.train_step import TrainStep
from core.training_state import Progress, training_tensors

logger = logging.getLogger(__name__)


class Saver:
    """Writes checkpoints of the run and rotates them. Collective."""

    def __init__(
        self,
        policy: CheckpointPolicy,
        identity: Mapping[str, Any],
        world: World,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        train_step: TrainStep,
        tracker_run_id: str | None,
        saved_step: int,
    ) -> None:
        """Args:
        policy: which checkpoints are made and kept.
        identity: what makes the run the run it is.
        world: this process's place and device.
        model: wrapped or not.
        optimizer: of its parameters.
        train_step: whose scaler is saved.
        tracker_run_id: the id that a tracking service knows the run by.
        saved_step: that the run continues from; 0 at the start.
        """
        self._policy = policy
        self._identity = identity
        self._world = world
        self._model = model
        self._optimizer = optimizer
        self._train_step = train_step
        self._tracker_run_id = tracker_run_id
        self._saved_step = saved_step
        # Checkpoints have collectives of their own, which must not mix with those of training.
        self._group = dist.new_group(backend="gloo", timeout=world.timeout) if world.size > 1 else None

    def save(self, progress: Progress) -> None:
        """Saves the state after progress.step, unless it is saved already."""
        if progress.step == self._saved_step:
            return
        share_buffers(self._model)
        state = {
            "progress": progress.to_json(),
            "scaler": self._train_step.scaler.state_dict(),
            "identity": self._identity,
            "tracker_run_id": self._tracker_run_id,
            "environment": environment(self._world),
        }
        tensors = training_tensors(unwrap(self._model), self._optimizer)
        path = write_checkpoint(self._policy.root, progress.step, tensors, state, self._group)
        self._saved_step = progress.step
        logger.info("saved %s", path)
        if self._world.is_main:
            self._policy.rotate()


def environment(world: World) -> dict[str, Any]:
    """What the last bits of the numbers depend on."""
    return {
        "world_size": world.size,
        "device": world.device.type,
        "num_threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
