"""Ends a run that has diverged, with one message that names the first non-finite value on any rank.

Skipped updates are counted in skipped_steps.py.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import torch

from common.batch import Batch
from common.distributed.consensus import RankConsensus
from common.errors import UserError
from core.loop.skipped_steps import SkippedStepCounter
from core.loop.step import TrainStep
from core.models.interface import DistributedModel
from core.run.nonfinite import (
    NamedPart,
    NonfiniteStateError,
    NonfiniteValue,
    buffer_names,
    first_nonfinite,
    first_of_ranks,
    state_parts,
)
from core.run.tensors import training_tensors


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
        """Check that the state after `step` is finite. Collective.

        The trainer calls it when tables may be non-finite. Every save checks its own copy (core/checkpoints/saver.py).

        Args:
          step: the last step.
          batch: description of its last batch.

        Raises:
          UserError: a value of the state is non-finite.
        """
        self._model.share_buffers()  # a checkpoint holds those of rank 0
        found = self._first_of_all_ranks(self._first_of_state())
        if found is not None:
            raise self._nonfinite_state(NonfiniteStateError(step, batch, found))

    @contextlib.contextmanager
    def report(self) -> Iterator[None]:
        """Turn the NonfiniteStateError of a save into a UserError. All ranks raise it together. Collective."""
        try:
            yield
        except NonfiniteStateError as error:
            raise self._nonfinite_state(error) from None

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
        own = own or self._first_of_state(1)
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

    def _first_of_state(self, stage: int = 0) -> NonfiniteValue | None:
        tensors = training_tensors(self._model, self._optimizer)
        return first_nonfinite(state_parts(tensors, buffer_names(self._model)), stage)

    def _first_of_all_ranks(self, own: NonfiniteValue | None) -> str | None:
        """Describe the first non-finite value of any rank. Collective."""
        return first_of_ranks(self._consensus.gather(own))

    def _nonfinite_state(self, error: NonfiniteStateError) -> UserError:
        return UserError(
            f"training has diverged: the model is non-finite after step {error.step} ({error.found}). "
            "It was not saved.\n"
            f"The last batch of the step was {error.batch}.\n"
            f"{self._advice(error.step)}"
        )

    def _advice(self, first_bad_step: int) -> str:
        checkpoints = self._checkpoints()
        before = [path for path in checkpoints if int(path.name) < first_bad_step]
        if before:
            newest = f"The newest checkpoint before it is {before[-1]}"
        elif checkpoints:
            newest = f"No checkpoint before it is left; {checkpoints[-1]} has the weights of step {first_bad_step - 1}"
        else:
            return "There is no checkpoint yet. Lower the learning rates, or correct the data."
        clip = "" if self._model.has_sharded_tables else ", set training.max_grad_norm"
        return (
            f"{newest}. Lower the learning rates{clip}, or correct the data, in a new run with a checkpoint as its "
            "training.initial_checkpoint_dir."
        )


def _batch_parts(micro_batches: Sequence[Batch]) -> Iterator[NamedPart]:
    for index, batch in enumerate(micro_batches):
        owner = "the batch's" if len(micro_batches) == 1 else f"micro-batch {index + 1}'s"
        yield from (NamedPart(f"{owner} {name}", tensor) for name, tensor in batch.named_tensors())
