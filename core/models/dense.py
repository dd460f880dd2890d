"""Spreads a model over the ranks: DistributedDataParallel for what is dense.

Embedding tables are spread before, and differently (sharding.py).
"""

import inspect
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from common.distributed.world import World
from core.models.sharded import ShardedModel, is_sharded

# Batch norm is local to a rank in training; share_buffers() gives all ranks rank 0's statistics where they matter. A
# broadcast at every step would cost a tenth of it. (torch before 2.13 has the older name alone.)
_WITHOUT_BUFFERS: dict[str, Any] = (
    {"forward_sync_buffers": False}
    if "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    else {"broadcast_buffers": False}
)


def parallelize(model: nn.Module, world: World, *, deterministic: bool = False) -> nn.Module:
    """Wraps a model that is on its device so that gradients are means over the ranks; a world of one needs no wrapper.

    Args:
      deterministic: keep the gradient buckets as they are first made. DDP otherwise rebuilds them after its first step,
        so that on three or more ranks a resumed run would add gradients in another order. A model with sharded
        tables is told when they are.
    """
    if world.size == 1:
        return model
    if isinstance(model, ShardedModel):
        model.replicate_dense()
        return model
    return DistributedDataParallel(
        model,
        device_ids=[world.device.index] if world.device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        find_unused_parameters=deterministic and world.size > 2,
        **_WITHOUT_BUFFERS,
    )


def unwrap(model: nn.Module) -> nn.Module:
    """The model within the wrapper."""
    return model.module if isinstance(model, DistributedDataParallel | ShardedModel) else model


def share_buffers(model: nn.Module) -> None:
    """Gives every rank rank 0's buffers: before an evaluation and a save, so that all have one model. Collective."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        for buffer in unwrap(model).buffers():
            dist.broadcast(buffer, src=0)


def num_parameters(model: nn.Module) -> int:
    """Trainable numbers in the model."""
    if isinstance(model, ShardedModel):
        tensors = model.module.state_dict()
        dense = {name for name, tensor in tensors.items() if not is_sharded(tensor)}
        of_tables = sum(weight.size().numel() for weight in model.tables().values())
        return of_tables + sum(p.numel() for name, p in model.module.named_parameters() if name in dense)
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
