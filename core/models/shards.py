"""Handles tensors that may be sharded: finds their parts on this rank, and allocates host memory for them."""

import copy
from typing import Any, NamedTuple, TypeGuard

import torch
from torch.distributed._shard.sharded_tensor import Shard, ShardedTensor
from torch.distributed.remote_device import _remote_device

from common.modules.keys import name_of_key


class LocalPart(NamedTuple):
    """A part of a tensor on this rank.

    Attributes:
      tensor: the values. They share memory with the whole tensor.
      offsets: index of the first value in the whole tensor.
    """

    tensor: torch.Tensor
    offsets: tuple[int, ...]


def is_sharded(tensor: Any) -> TypeGuard[ShardedTensor]:
    """Return whether a tensor is sharded over the ranks."""
    return isinstance(tensor, ShardedTensor)


def local_parts(tensor: torch.Tensor) -> list[LocalPart]:
    """Return the parts of a tensor on this rank: its shards, or all of it if it is not sharded."""
    if is_sharded(tensor):
        return [LocalPart(local.tensor, tuple(local.metadata.shard_offsets)) for local in tensor.local_shards()]
    return [LocalPart(tensor, (0,) * tensor.dim())]


def empty_on_host(tensor: torch.Tensor, *, pin_memory: bool = False) -> torch.Tensor:
    """Return an uninitialized tensor in host memory, of equal size, dtype and sharding. Not collective."""
    if is_sharded(tensor):
        return _empty_shards_on_host(tensor, pin_memory)
    return torch.empty_like(tensor, device="cpu", pin_memory=pin_memory)


def table_of(parameter: str) -> str:
    """Return the name of the table that a parameter `tables.embeddings.<key>.weight` belongs to."""
    return name_of_key(parameter.rsplit(".", 2)[1])


def _empty_shards_on_host(tensor: ShardedTensor, pin_memory: bool) -> ShardedTensor:
    # Avoid ShardedTensor's collective constructor: a rank without a table-wise table has no optimizer state for it.
    metadata = copy.deepcopy(tensor.metadata())
    for part in metadata.shards_metadata:
        assert part.placement is not None
        part.placement = _remote_device(f"rank:{part.placement.rank()}/cpu")
    own = {tuple(part.shard_offsets): part for part in metadata.shards_metadata}
    shards = [
        Shard(
            torch.empty_like(local.tensor, device="cpu", pin_memory=pin_memory),
            own[tuple(local.metadata.shard_offsets)],
        )
        for local in tensor.local_shards()
    ]
    return ShardedTensor._init_from_local_shards_and_global_metadata(shards, metadata)
