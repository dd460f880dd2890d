"""A batch: a dataclass of tensors that moves between devices as one thing."""

import dataclasses
from collections.abc import Callable
from typing import Self

import torch


@dataclasses.dataclass(frozen=True)
class Batch:
    """Base of a project's batch. Its fields are tensors [batch, ...], None, or plain values that travel along."""

    @property
    def batch_size(self) -> int:
        """Rows of the first tensor.

        Raises:
          ValueError: the batch holds no tensor.
        """
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, torch.Tensor):
                return value.shape[0]
        raise ValueError(f"{type(self).__name__} holds no tensor")

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """The same batch with every tensor on `device`."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """The same batch in page-locked host memory, from where copies to CUDA run beside the host."""
        return self._map(lambda tensor: tensor.pin_memory())

    def record_stream(self, stream: torch.Stream) -> None:
        """Tells CUDA's allocator that `stream` uses the tensors, so that it doesn't give their memory away early."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, torch.Tensor):
                value.record_stream(stream)

    def _map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> Self:
        changed = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, torch.Tensor):
                changed[field.name] = function(value)
        return dataclasses.replace(self, **changed)
