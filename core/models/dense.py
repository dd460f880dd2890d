"""Replicates a dense model on all ranks: DistributedDataParallel, or no wrapper in a world of one."""

import contextlib
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from common.distributed.world import World
from core.models.averaging import WeightAverage
from core.models.interface import DistributedModel

# Batch norm is local to a rank during training; share_buffers() gives all ranks rank 0's statistics where they matter.
# A broadcast at every step would take a tenth of its time. torch before 2.13 has only the older name.
_WITHOUT_BUFFERS: dict[str, Any] = (
    {"forward_sync_buffers": False}
    if "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    else {"broadcast_buffers": False}
)


class DenseModel:
    """A model whose parameters are equal on all ranks."""

    has_sharded_tables = False

    def __init__(self, module: nn.Module, world: World, *, deterministic: bool = False) -> None:
        """Initialize without communication.

        Args:
          module: a core.models.interface.TrainableModel on the world's device.
          world: rank of this process, world size and device.
          deterministic: keep DDP's gradient buckets as they are first built. DDP otherwise rebuilds them after its
            first step, so that on three or more ranks a resumed run would add gradients in a different order.
        """
        self.module = module
        self.average: WeightAverage | None = None
        self._world = world
        self._deterministic = deterministic
        self.replica: nn.Module = module
        """The module that training calls: the model itself, or its DDP wrapper after replicate()."""

    def __call__(self, batch: Any) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
        """Compute the loss and outputs of a batch."""
        outputs: tuple[torch.Tensor, Mapping[str, torch.Tensor]] = self.replica(batch)
        return outputs

    def replicate(self) -> None:
        """Wrap the model in DDP if there are several ranks. Collective."""
        if self._world.size > 1 and self.num_parameters > 0:  # DDP refuses models that cannot be trained
            device = self._world.device
            self.replica = DistributedDataParallel(
                self.module,
                device_ids=[device.index] if device.type == "cuda" else None,
                gradient_as_bucket_view=True,
                find_unused_parameters=self._deterministic and self._world.size > 2,
                **_WITHOUT_BUFFERS,
            )

    def row_gradients(self) -> list[torch.Tensor]:
        """Return an empty list, because there are no sharded tables."""
        return []

    def update_tables(self) -> None:
        """Do nothing, because there are no sharded tables."""

    def no_sync(self) -> contextlib.AbstractContextManager[Any]:
        """Return a context in which DDP does not reduce gradients."""
        if isinstance(self.replica, DistributedDataParallel):
            return self.replica.no_sync()
        return contextlib.nullcontext()

    def without_gradients(self) -> contextlib.AbstractContextManager[Any]:
        """Return a context in torch's inference mode."""
        return torch.inference_mode()

    def averaged_weights(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which the model has the moving average of its weights, if there is one."""
        return contextlib.nullcontext() if self.average is None else self.average.in_place_of_weights()

    def share_buffers(self) -> None:
        """Give every rank the buffers of rank 0, and their averages. Collective."""
        broadcast_buffers(self.module.buffers(), self._world)
        if self.average is not None:
            broadcast_buffers(self.average.buffers(), self._world)

    def fused_optimizer_states(self) -> Mapping[str, torch.Tensor]:
        """Return an empty mapping, because there are no sharded tables."""
        return {}

    @property
    def num_parameters(self) -> int:
        """Number of trainable values."""
        return sum(parameter.numel() for parameter in self.module.parameters() if parameter.requires_grad)


def as_distributed(
    model: nn.Module | DistributedModel, world: World, *, deterministic: bool = False
) -> DistributedModel:
    """Return the model as a DistributedModel. Wraps a module in a DenseModel; returns a DistributedModel unchanged."""
    return DenseModel(model, world, deterministic=deterministic) if isinstance(model, nn.Module) else model


def broadcast_buffers(buffers: Iterable[torch.Tensor], world: World) -> None:
    """Give every rank the buffers of rank 0. Collective."""
    if world.size > 1:
        for buffer in buffers:
            dist.broadcast(buffer, src=0)
