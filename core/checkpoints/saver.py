"""Saves the state of a training run as checkpoints in the background, and rotates old ones.

Training stops only for the copy to host memory. One save is in progress at a time; the next one waits for it. A copy
with a non-finite value is not saved.
"""

import hashlib
import json
import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist

from common.checkpointing.manifest import CheckpointError
from common.checkpointing.retention import CheckpointRetention
from common.checkpointing.writer import write_checkpoint
from common.distributed.world import World
from core.models.interface import DistributedModel
from core.models.shards import empty_on_host, local_parts
from core.run.identity import run_environment
from core.run.nonfinite import NonfiniteStateError, buffer_names, first_nonfinite, first_of_ranks, state_parts
from core.run.state import TrainingState
from core.run.tensors import training_tensors

logger = logging.getLogger(__name__)

# Longest time that close() waits for a save that may hang because a rank is lost, in seconds.
_PATIENCE_IN_S = 20.0


class Saver:
    """Writes the checkpoints of a run and rotates them. All ranks make the same calls."""

    def __init__(
        self,
        retention: CheckpointRetention,
        model: DistributedModel,
        optimizer: torch.optim.Optimizer,
        world: World,
        saved_step: int = 0,
        sync: Callable[[], None] = lambda: None,
    ) -> None:
        """Initialize without communication.

        Args:
          retention: decides which checkpoints are kept.
          model: the model on all ranks.
          optimizer: the optimizer of the model's parameters.
          world: rank of this process, world size and device.
          saved_step: step that the run continues from; 0 for a fresh run.
          sync: called before a checkpoint becomes visible; makes durable what a resume needs alongside it.
        """
        self._retention = retention
        self._model = model
        self._optimizer = optimizer
        self._world = world
        self._saved_step = saved_step
        self._sync = sync
        self._group: dist.ProcessGroup | None = None
        self._staged: dict[str, torch.Tensor] = {}
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None

    def save(self, state: TrainingState, batch: str = "") -> None:
        """Copy the tensors and start to save them with `state`, unless this step is already saved. Collective.

        If writing fails, rank 0 logs one error and training continues.

        Args:
          state: the state to save.
          batch: description of its last batch, for errors.

        Raises:
          NonfiniteStateError: the last save found a non-finite value.
        """
        self.wait()
        if state.step == self._saved_step:
            return
        self._model.share_buffers()
        self._create_group()
        values = state.to_json()
        self._stage(training_tensors(self._model, self._optimizer))
        self._failure = None
        provenance = run_environment(self._world) | {"config_digest": _config_digest(state.identity)}
        # It is a daemon thread, because a save that hangs on a lost rank must not keep the process alive.
        self._thread = threading.Thread(
            target=self._write, args=(state.step, batch, values, provenance), name="save checkpoint", daemon=True
        )
        self._thread.start()

    def wait(self) -> bool:
        """Wait for the save in progress. Return whether the newest save succeeded, the same on all ranks.

        Raises:
          NonfiniteStateError: on all ranks, if the newest save found a non-finite value on any.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._failure is not None and not isinstance(self._failure, CheckpointError):
            raise self._failure
        return self._failure is None

    def close(self) -> None:
        """Wait for the save in progress if training ended without wait(). With several ranks, the wait is bounded."""
        if self._thread is not None:
            self._thread.join(None if self._world.size == 1 else _PATIENCE_IN_S)

    def _create_group(self) -> None:
        """Create a separate process group, so that its collectives do not mix with those of training.

        The first call is collective. A world of one has no group.
        """
        if self._group is None and self._world.size > 1:
            self._group = dist.new_group(backend="gloo", timeout=self._world.timeout)

    def _stage(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Copy the tensors to host memory. All saves reuse it, because new pages would take longer than the copy."""
        pin_memory = self._world.device.type == "cuda"
        for name, tensor in tensors.items():
            if name not in self._staged:
                self._staged[name] = empty_on_host(tensor, pin_memory=pin_memory)
            for own, current in zip(local_parts(self._staged[name]), local_parts(tensor), strict=True):
                own.tensor.copy_(current.tensor.detach(), non_blocking=True)
        if pin_memory:
            torch.cuda.synchronize()

    def _write(self, step: int, batch: str, values: Mapping[str, Any], provenance: Mapping[str, Any]) -> None:
        """Write the staged tensors if all are finite. Runs in the background thread."""
        try:
            if (found := self._find_nonfinite()) is not None:
                raise NonfiniteStateError(step, batch, found)
            self._sync()
            path = write_checkpoint(
                self._retention.root,
                step,
                self._staged,
                values,
                self._group,
                provenance,
                self._retention.may_write,
            )
        except Exception as error:
            self._failure = error
            if isinstance(error, CheckpointError) and self._world.is_rank_zero:
                logger.error("%s", error)
            return
        self._saved_step = step
        logger.info("saved %s", path)
        if self._world.is_rank_zero:
            self._retention.rotate(step)

    def _find_nonfinite(self) -> str | None:
        """Describe the first non-finite value in the staged tensors of any rank; None if all are finite."""
        own = first_nonfinite(state_parts(self._staged, buffer_names(self._model)))
        by_rank = [own]
        if self._group is not None:
            by_rank *= self._world.size
            dist.all_gather_object(by_rank, own, group=self._group)
        return first_of_ranks(by_rank)


def _config_digest(identity: Mapping[str, Any]) -> str:
    config = json.dumps(identity, sort_keys=True).encode()
    return hashlib.blake2b(config, digest_size=16).hexdigest()
