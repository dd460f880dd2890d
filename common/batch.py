"""Defines the base class of batches: dataclasses of tensors that move between devices as one object."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

import torch


@dataclasses.dataclass(frozen=True)
class Batch:
    """Base class of a project's batches.

    A field is a tensor [batch, ...], a mapping from names to such tensors, None, or a plain value. Plain values are
    passed along unchanged.
    """

    @property
    def batch_size(self) -> int:
        """Number of rows of the first tensor.

        Raises:
          ValueError: the batch holds no tensor.
        """
        for _, tensor in self.named_tensors():
            return tensor.shape[0]
        raise ValueError(f"{type(self).__name__} holds no tensor")

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """Return the batch with every tensor on `device`."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """Return the batch in page-locked host memory, which allows asynchronous copies to CUDA."""
        return self._map(lambda tensor: tensor.pin_memory())

    def record_stream(self, stream: torch.Stream) -> None:
        """Mark the tensors as used by `stream`, so that CUDA's allocator does not reuse their memory too early."""
        for _, tensor in self.named_tensors():
            tensor.record_stream(stream)

    def named_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield each tensor with the name of its field; a tensor in a mapping is named `<field>.<key>`."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, torch.Tensor):
                yield field.name, value
            elif isinstance(value, Mapping):
                yield from (
                    (f"{field.name}.{key}", item) for key, item in value.items() if isinstance(item, torch.Tensor)
                )

    def _map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> Self:
        def mapped(value: Any) -> Any:
            if isinstance(value, Mapping):
                return {name: mapped(item) for name, item in value.items()}
            return function(value) if isinstance(value, torch.Tensor) else value

        values = {field.name: mapped(getattr(self, field.name)) for field in dataclasses.fields(self)}
        return dataclasses.replace(self, **values)
