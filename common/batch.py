"""A batch: a dataclass of tensors that moves between devices as one thing."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

import torch


@dataclasses.dataclass(frozen=True)
class Batch:
    """Base of a project's batch. Its fields are tensors [batch, ...], mappings from names to such tensors, None, or
    plain values that travel along."""

    @property
    def batch_size(self) -> int:
        """Rows of the first tensor.

        Raises:
          ValueError: the batch holds no tensor.
        """
        for _, tensor in self.named_tensors():
            return tensor.shape[0]
        raise ValueError(f"{type(self).__name__} holds no tensor")

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """The same batch with every tensor on `device`."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """The same batch in page-locked host memory, from where copies to CUDA run beside the host."""
        return self._map(lambda tensor: tensor.pin_memory())

    def record_stream(self, stream: torch.Stream) -> None:
        """Tells CUDA's allocator that `stream` uses the tensors, so that it doesn't give their memory away early."""
        for _, tensor in self.named_tensors():
            tensor.record_stream(stream)

    def named_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The tensors with the names of their fields; of a mapping, `<field>.<key>`."""
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
