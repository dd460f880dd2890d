"""Saves the state of a training run as checkpoints beside the training, and rotates them.

Training stops for the copy to host memory alone. One save is under way at a time: the next one waits for it.
"""

import hashlib
import json
import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from common.checkpointing.manifest import CheckpointError
from common.checkpointing.retention import CheckpointRetention
from common.checkpointing.writer import write_checkpoint
from common.distributed.world import World
from core.models.dense import share_buffers
from core.models.sharded import is_sharded, shards_like
from core.run.state import Progress, SavedState, training_tensors

logger = logging.getLogger(__name__)

# How long an exception that ends training waits for a save that may hang because a rank is gone, in seconds.
_PATIENCE_IN_S = 20.0


class Saver:
    """Writes checkpoints of the run and rotates them. Collective."""

    def __init__(
        self,
        policy: CheckpointRetention,
        identity: Mapping[str, Any],
        world: World,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        tracker_run_id: str | None,
        saved_step: int,
        sync: Callable[[], None] = lambda: None,
    ) -> None:
        """Args:
        policy: which checkpoints are made and kept.
        identity: what makes the run the run it is.
        world: this process's place and device.
        model: wrapped or not.
        optimizer: of its parameters.
        scaler: of float16.
        tracker_run_id: the id that a tracking service knows the run by.
        saved_step: that the run continues from; 0 at the start.
        sync: makes durable, before a checkpoint is, what a run that continues from it needs beside it.
        """
        self._policy = policy
        self._identity = identity
        self._provenance = environment(world) | {"config_digest": _config_digest(identity)}
        self._world = world
        self._model = model
        self._optimizer = optimizer
        self._scaler = scaler
        self._tracker_run_id = tracker_run_id
        self._saved_step = saved_step
        self._sync = sync
        # Checkpoints have collectives of their own, which must not mix with those of training.
        self._group = dist.new_group(backend="gloo", timeout=world.timeout) if world.size > 1 else None
        self._staged: dict[str, torch.Tensor] = {}
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None

    def save(self, progress: Progress) -> None:
        """Copies the state after progress.step and begins to save it, unless it is saved already.

        What the disk refuses is one error in the log, on rank 0; training goes on.
        """
        self.wait()
        if progress.step == self._saved_step:
            return
        share_buffers(self._model)
        scaler = self._scaler.state_dict()
        state = SavedState(progress, scaler, self._identity, self._tracker_run_id).to_json()
        self._stage(training_tensors(self._model, self._optimizer))
        self._failure = None
        # A daemon, because a save that hangs on a rank that is gone must not keep the process.
        self._thread = threading.Thread(
            target=self._write, args=(progress.step, state), name="save checkpoint", daemon=True
        )
        self._thread.start()

    def wait(self) -> bool:
        """Waits for the save under way; whether the newest one succeeded. The same on all ranks."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._failure is not None and not isinstance(self._failure, CheckpointError):
            raise self._failure
        return self._failure is None

    def close(self) -> None:
        """Lets the save under way end where training has ended without wait()."""
        if self._thread is not None:
            self._thread.join(None if self._group is None else _PATIENCE_IN_S)

    def _stage(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Copies the tensors to host memory, which every save uses again: new pages would cost more than the copy."""
        pin_memory = self._world.device.type == "cuda"
        for name, tensor in tensors.items():
            if name not in self._staged:
                self._staged[name] = _host_memory_like(tensor, pin_memory)
            for own, current in zip(_parts(self._staged[name]), _parts(tensor), strict=True):
                own.copy_(current.detach(), non_blocking=True)
        if pin_memory:
            torch.cuda.synchronize()

    def _write(self, step: int, state: Mapping[str, Any]) -> None:
        """In the thread."""
        try:
            self._sync()
            path = write_checkpoint(self._policy.root, step, self._staged, state, self._group, self._provenance)
        except Exception as error:
            self._failure = error
            if isinstance(error, CheckpointError) and self._world.is_rank_zero:
                logger.error("%s", error)
            return
        self._saved_step = step
        logger.info("saved %s", path)
        if self._world.is_rank_zero:
            self._policy.rotate(step)


def _host_memory_like(tensor: torch.Tensor, pin_memory: bool) -> torch.Tensor:
    if is_sharded(tensor):
        return shards_like(tensor, pin_memory)
    return torch.empty_like(tensor, device="cpu", pin_memory=pin_memory)


def _parts(tensor: torch.Tensor) -> list[torch.Tensor]:
    """What of a tensor this rank has."""
    return [local.tensor for local in tensor.local_shards()] if is_sharded(tensor) else [tensor]


def _config_digest(identity: Mapping[str, Any]) -> str:
    config = json.dumps(identity, sort_keys=True).encode()
    return hashlib.blake2b(config, digest_size=16).hexdigest()


def environment(world: World) -> dict[str, Any]:
    """What the last bits of the numbers depend on."""
    return {
        "world_size": world.size,
        "device": world.device.type,
        "num_threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
