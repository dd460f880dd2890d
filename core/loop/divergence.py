"""How a run ends whose numbers went wrong: what is not finite, looked for in the order of cause on all ranks, and told
by one message.

Steps are counted in nonfinite_steps.py, updates left out in train_step.py.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from torch import nn

from common.batch import Batch
from common.distributed.consensus import RankConsensus
from common.errors import UserError
from core.loop.skipped_steps import SkippedStepCounter
from core.loop.step import TrainStep
from core.models.dense import share_buffers, unwrap
from core.models.sharded import ShardedModel, is_sharded, table_of
from core.run.state import training_tensors


@dataclasses.dataclass(frozen=True)
class Part:
    """What of a tensor a rank has."""

    name: str
    tensor: torch.Tensor
    offsets: tuple[int, ...] = ()
    """Of its first number in the whole tensor."""


@dataclasses.dataclass(frozen=True, order=True)
class BadNumber:
    """The first number of a rank that is not finite."""

    cause: tuple[int, int]
    """Its place in the order of cause; the smaller, the earlier."""
    name: str
    """Of its tensor."""
    index: tuple[int, ...]
    """In the whole tensor."""
    value: str
    """nan, inf or -inf."""

    def __str__(self) -> str:
        if self.name.startswith("table "):
            return f"{self.name}, row {self.index[0]}: {self.value}"
        return f"{self.name}{list(self.index) if self.index else ''}: {self.value}"


def first_bad(parts: Iterable[Part], stage: int = 0) -> BadNumber | None:
    """The first number that is NaN or infinite; None where all are finite.

    One pass without an allocation of their size, and one read of the device.
    """
    looked_at = [part for part in parts if part.tensor.is_floating_point() and part.tensor.numel() > 0]
    if not looked_at:
        return None
    extremes = [torch.stack(torch.aminmax(part.tensor.detach())).to(torch.float64) for part in looked_at]
    finite = torch.isfinite(torch.stack(extremes)).all(dim=1).tolist()
    if all(finite):
        return None
    place = finite.index(False)
    part = looked_at[place]
    bad = ~torch.isfinite(part.tensor.detach())
    index = np.unravel_index(int(bad.flatten().view(torch.uint8).argmax().item()), bad.shape)
    value = part.tensor.detach()[tuple(map(int, index))].item()
    offsets = part.offsets or (0,) * len(index)
    whole = tuple(int(own) + offset for own, offset in zip(index, offsets, strict=True))
    return BadNumber((stage, place), part.name, whole, f"{value:g}")


def state_parts(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[Part]:
    """This rank's part of what a checkpoint has: parameters and tables, buffers, what optimizers remember."""
    buffers = {name for name, _ in unwrap(model).named_buffers()}
    by_kind: dict[str, list[Part]] = {"parameter": [], "buffer": [], "optimizer state": []}
    for name, tensor in training_tensors(model, optimizer).items():
        owner, _, own_name = name.partition(".")
        if owner != "model":
            kind, label = "optimizer state", f"optimizer state {own_name}"
        elif is_sharded(tensor):
            kind, label = "parameter", f"table {table_of(own_name)}"
        else:
            kind = "buffer" if own_name in buffers else "parameter"
            label = f"{kind} {own_name}"
        by_kind[kind] += _parts(label, tensor)
    for parts in by_kind.values():
        yield from parts


def _parts(name: str, tensor: torch.Tensor) -> list[Part]:
    if not is_sharded(tensor):
        return [Part(name, tensor)]
    return [Part(name, local.tensor, tuple(local.metadata.shard_offsets)) for local in tensor.local_shards()]


class DivergenceReporter:
    """Ends a run, on all ranks with the same message."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        train_step: TrainStep,
        consensus: RankConsensus,
        checkpoints: Callable[[], list[Path]],
    ) -> None:
        """Args:
        model: wrapped or not.
        optimizer: of its parameters.
        train_step: of the model.
        consensus: of the ranks.
        checkpoints: lists the complete ones, the newest last, once a save under way has ended. Collective.
        """
        self._model = model
        self._optimizer = optimizer
        self._train_step = train_step
        self._consensus = consensus
        self._checkpoints = checkpoints

    def check_state(self, step: int, place: str) -> None:
        """Before the state after `step` is saved, and where its tables are in doubt: so that every checkpoint is of
        finite numbers. Collective.

        Args:
          step: the last that was made.
          place: of its batch in the data, for people.

        Raises:
          UserError: a number of the state is not finite.
        """
        share_buffers(self._model)  # those of rank 0 are saved
        found = self._agree(first_bad(state_parts(self._model, self._optimizer)))
        if found is not None:
            raise UserError(
                f"training has diverged: after step {step} the model is not finite ({found}), and it was not saved.\n"
                f"The step's last batch was {place}.\n"
                f"{self._way_out(step)}"
            )

    def raise_too_many(
        self, counted: SkippedStepCounter, step: int, micro_batches: Sequence[Batch], places: Sequence[str]
    ) -> NoReturn:
        """Ends the run after too many steps whose update was left out. Collective.

        Args:
          counted: which those are.
          step: the last that was made, which is looked at.
          micro_batches: its.
          places: which they are in the data, for people.

        Raises:
          UserError: always.
        """
        own = first_bad(_of_batches(micro_batches), 0) or first_bad(state_parts(self._model, self._optimizer), 1)
        again = [Part(name, tensor) for name, tensor in self._train_step.replay_for_diagnosis(micro_batches, step)]
        found = self._agree(own or first_bad(again, 2))
        steps = counted.too_many
        assert steps is not None
        made_of = places[0] if len(places) == 1 else f"{len(places)} micro-batches, {places[0]}, to {places[-1]}"
        raise UserError(
            f"training has diverged: in {len(steps)} steps in a row ({steps[0]} to {steps[-1]}) losses or gradients "
            f"were not finite, and no update was made; training.max_nonfinite_steps allows {counted.most}.\n"
            f"Step {step} was made of {made_of}. Made once more, "
            f"{f'what is not finite first is {found}' if found is not None else 'all its numbers are finite'}.\n"
            f"{self._way_out(steps[0])}"
        )

    def _agree(self, own: BadNumber | None) -> str | None:
        """The first number in the order of cause on any rank, with the ranks where others have another."""
        by_rank = self._consensus.gather(own)
        bad = [found for found in by_rank if found is not None]
        if not bad:
            return None
        first = min(bad)
        ranks = [str(rank) for rank, found in enumerate(by_rank) if found == first]
        return f"{first}" + (f", on rank {', '.join(ranks)}" if len(ranks) < len(by_rank) else "")

    def _way_out(self, first_bad_step: int) -> str:
        checkpoints = self._checkpoints()
        before = [path for path in checkpoints if int(path.name) < first_bad_step]
        if before:
            told = f"The newest checkpoint from before is {before[-1]}"
        elif checkpoints:
            told = f"No checkpoint from before is left; {checkpoints[-1]} has the weights of step {first_bad_step - 1}"
        else:
            return "There is no checkpoint yet. Lower the learning rates, or correct the data"
        clip = "" if isinstance(self._model, ShardedModel) else ", set training.max_grad_norm"
        return (
            f"{told}. Lower the learning rates{clip}, or correct the data, in a new run with a checkpoint as its "
            "training.initial_checkpoint_dir"
        )


def _of_batches(micro_batches: Sequence[Batch]) -> Iterator[Part]:
    for index, batch in enumerate(micro_batches):
        which = "the batch's" if len(micro_batches) == 1 else f"micro-batch {index + 1}'s"
        yield from (Part(f"{which} {name}", tensor) for name, tensor in batch.named_tensors())
