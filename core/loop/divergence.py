"""Ends a run that has diverged: finds the first non-finite value on any rank, and reports it in one message.

Skipped updates are counted in skipped_steps.py.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch

from common.batch import Batch
from common.distributed.consensus import RankConsensus
from common.errors import UserError
from core.loop.skipped_steps import SkippedStepCounter
from core.loop.step import TrainStep
from core.models.interface import DistributedModel
from core.models.shards import is_sharded, local_parts, table_of
from core.run.tensors import MODEL, training_tensors


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


def state_parts(model: DistributedModel, optimizer: torch.optim.Optimizer) -> Iterator[NamedPart]:
    """Yield this rank's parts of what a checkpoint holds: parameters and tables, buffers, then optimizer states."""
    buffers = {name for name, _ in model.module.named_buffers()}
    by_kind: dict[str, list[NamedPart]] = {"parameter": [], "buffer": [], "optimizer state": []}
    for name, tensor in training_tensors(model, optimizer).items():
        owner, _, own_name = name.partition(".")
        if owner != MODEL.rstrip("."):
            kind, label = "optimizer state", f"optimizer state {own_name}"
        elif is_sharded(tensor):
            kind, label = "parameter", f"table {table_of(own_name)}"
        else:
            kind = "buffer" if own_name in buffers else "parameter"
            label = f"{kind} {own_name}"
        by_kind[kind] += [NamedPart(label, part.tensor, part.offsets) for part in local_parts(tensor)]
    for parts in by_kind.values():
        yield from parts


class DivergenceReporter:
    """Ends a diverged run with the same message on all ranks."""

    def __init__(
        self,
        model: DistributedModel,
        optimizer: torch.optim.Optimizer,
        train_step: TrainStep,
        consensus: RankConsensus,
        checkpoints: Callable[[], list[Path]],
    ) -> None:
        """Initialize.

        Args:
          model: the model on all ranks.
          optimizer: the optimizer of the model's parameters.
          train_step: the training step of the model.
          consensus: combines the findings of all ranks.
          checkpoints: lists the complete checkpoints, newest last, after any save in progress has ended. Collective.
        """
        self._model = model
        self._optimizer = optimizer
        self._train_step = train_step
        self._consensus = consensus
        self._checkpoints = checkpoints

    def check_state(self, step: int, batch: str) -> None:
        """Check that the state after `step` is finite, so that every checkpoint is. Collective.

        The trainer calls it before it saves, and when tables may be non-finite.

        Args:
          step: the last step.
          batch: description of its last batch.

        Raises:
          UserError: a value of the state is non-finite.
        """
        self._model.share_buffers()  # a checkpoint holds those of rank 0
        found = self._first_of_all_ranks(first_nonfinite(state_parts(self._model, self._optimizer)))
        if found is not None:
            raise UserError(
                f"training has diverged: the model is non-finite after step {step} ({found}). It was not saved.\n"
                f"The last batch of the step was {batch}.\n"
                f"{self._advice(step)}"
            )

    def raise_too_many(
        self, counter: SkippedStepCounter, step: int, micro_batches: Sequence[Batch], described: Sequence[str]
    ) -> NoReturn:
        """End the run after too many skipped updates in a row. Collective.

        Args:
          counter: counter of the skipped updates.
          step: the last step. It is repeated to find the first non-finite value.
          micro_batches: the micro-batches of the last step.
          described: description of each micro-batch.

        Raises:
          UserError: always.
        """
        own = first_nonfinite(_batch_parts(micro_batches), 0)
        own = own or first_nonfinite(state_parts(self._model, self._optimizer), 1)
        replayed = [
            NamedPart(name, value) for name, value in self._train_step.replay_for_diagnosis(micro_batches, step)
        ]
        found = self._first_of_all_ranks(own or first_nonfinite(replayed, 2))
        steps = counter.too_many
        assert steps is not None
        trained_on = described[0]
        if len(described) > 1:
            trained_on = f"{len(described)} micro-batches, {described[0]}, to {described[-1]}"
        raise UserError(
            f"training has diverged: losses or gradients were non-finite in {len(steps)} steps in a row ({steps[0]} to "
            f"{steps[-1]}), so their updates were skipped; training.max_nonfinite_steps allows {counter.limit}.\n"
            f"Step {step} trained on {trained_on}. When it is repeated, "
            f"{f'the first non-finite value is {found}' if found is not None else 'all values are finite'}.\n"
            f"{self._advice(steps[0])}"
        )

    def _first_of_all_ranks(self, own: NonfiniteValue | None) -> str | None:
        """Describe the first non-finite value in the order of causes on any rank, and name its ranks. Collective."""
        by_rank = self._consensus.gather(own)
        values = [value for value in by_rank if value is not None]
        if not values:
            return None
        first = min(values)
        ranks = [str(rank) for rank, value in enumerate(by_rank) if value == first]
        return f"{first}" + (f", on rank {', '.join(ranks)}" if len(ranks) < len(by_rank) else "")

    def _advice(self, first_bad_step: int) -> str:
        checkpoints = self._checkpoints()
        before = [path for path in checkpoints if int(path.name) < first_bad_step]
        if before:
            newest = f"The newest checkpoint before it is {before[-1]}"
        elif checkpoints:
            newest = f"No checkpoint before it is left; {checkpoints[-1]} has the weights of step {first_bad_step - 1}"
        else:
            return "There is no checkpoint yet. Lower the learning rates, or correct the data."
        clip = "" if self._model.updates_in_backward else ", set training.max_grad_norm"
        return (
            f"{newest}. Lower the learning rates{clip}, or correct the data, in a new run with a checkpoint as its "
            "training.initial_checkpoint_dir."
        )


def _batch_parts(micro_batches: Sequence[Batch]) -> Iterator[NamedPart]:
    for index, batch in enumerate(micro_batches):
        owner = "the batch's" if len(micro_batches) == 1 else f"micro-batch {index + 1}'s"
        yield from (NamedPart(f"{owner} {name}", tensor) for name, tensor in batch.named_tensors())
