"""Finds the first value that is NaN or infinite in tensors of any rank, and says where it is."""

import dataclasses
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch

from core.models.interface import DistributedModel
from core.models.shards import is_sharded, local_parts, table_of
from core.run.tensors import AVERAGE, MODEL


class NonfiniteStateError(Exception):
    """Raised if a state was not saved, because it is non-finite.

    Attributes:
      step: the last step of the state.
      batch: description of its last batch.
      found: description of its first non-finite value.
    """

    def __init__(self, step: int, batch: str, found: str) -> None:
        super().__init__(step, batch, found)
        self.step = step
        self.batch = batch
        self.found = found


@dataclasses.dataclass(frozen=True)
class NamedPart:
    """A part of a named tensor on this rank."""

    name: str
    """Name of the whole tensor."""
    tensor: torch.Tensor
    offsets: tuple[int, ...] = ()
    """Index of its first value in the whole tensor; empty if it is the whole tensor."""


@dataclasses.dataclass(frozen=True, order=True)
class NonfiniteValue:
    """The first non-finite value of a rank."""

    cause: tuple[int, int]
    """Its position in the order of causes; a smaller one is an earlier cause."""
    name: str
    """Name of its tensor."""
    index: tuple[int, ...]
    """Index in the whole tensor."""
    value: str
    """nan, inf or -inf."""

    def __str__(self) -> str:
        if self.name.startswith("table "):
            return f"{self.name}, row {self.index[0]}: {self.value}"
        return f"{self.name}{list(self.index) if self.index else ''}: {self.value}"


def first_nonfinite(parts: Iterable[NamedPart], stage: int = 0) -> NonfiniteValue | None:
    """Return the first value that is NaN or infinite, or None if all values are finite.

    Makes one pass without allocating memory of the size of the tensors, and waits for the device once.
    """
    candidates = [part for part in parts if part.tensor.is_floating_point() and part.tensor.numel() > 0]
    if not candidates:
        return None
    extremes = [torch.stack(torch.aminmax(part.tensor.detach())).to(torch.float64) for part in candidates]
    finite = torch.isfinite(torch.stack(extremes)).all(dim=1).tolist()
    if all(finite):
        return None
    order = finite.index(False)
    part = candidates[order]
    nonfinite = ~torch.isfinite(part.tensor.detach())
    index = np.unravel_index(int(nonfinite.flatten().view(torch.uint8).argmax().item()), nonfinite.shape)
    value = part.tensor.detach()[tuple(map(int, index))].item()
    offsets = part.offsets or (0,) * len(index)
    whole = tuple(int(own) + offset for own, offset in zip(index, offsets, strict=True))
    return NonfiniteValue((stage, order), part.name, whole, f"{value:g}")


def first_of_ranks(by_rank: Sequence[NonfiniteValue | None]) -> str | None:
    """Describe the first of the ranks' values in the order of causes, and name its ranks; None if there is no value."""
    values = [value for value in by_rank if value is not None]
    if not values:
        return None
    first = min(values)
    ranks = [str(rank) for rank, value in enumerate(by_rank) if value == first]
    return f"{first}" + (f", on rank {', '.join(ranks)}" if len(ranks) < len(by_rank) else "")


def buffer_names(model: DistributedModel) -> set[str]:
    """Return the names of a model's buffers."""
    return {name for name, _ in model.module.named_buffers()}


def state_parts(tensors: Mapping[str, torch.Tensor], buffers: Collection[str]) -> Iterator[NamedPart]:
    """Yield this rank's parts of what a checkpoint holds: parameters and tables, buffers, optimizer states, averages.

    Args:
      tensors: what training_tensors() returns, or a copy.
      buffers: names of the model's buffers.
    """
    by_kind: dict[str, list[NamedPart]] = {"parameter": [], "buffer": [], "optimizer state": [], "average": []}
    for name, tensor in tensors.items():
        owner, _, own_name = name.partition(".")
        if owner == AVERAGE.rstrip("."):
            kind, label = "average", f"average of {own_name}"
        elif owner != MODEL.rstrip("."):
            kind, label = "optimizer state", f"optimizer state {own_name}"
        elif is_sharded(tensor):
            kind, label = "parameter", f"table {table_of(own_name)}"
        else:
            kind = "buffer" if own_name in buffers else "parameter"
            label = f"{kind} {own_name}"
        by_kind[kind] += [NamedPart(label, part.tensor, part.offsets) for part in local_parts(tensor)]
    for parts in by_kind.values():
        yield from parts
