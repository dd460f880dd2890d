"""Defines the interfaces of models: the model that a project trains, and its distribution over the ranks."""

import contextlib
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import nn

from core.models.averaging import WeightAverage


class TrainableModel(Protocol):
    """A model that can be trained: `loss, outputs = model(batch)`.

    `loss` is a scalar: the sum over this rank's examples divided by their number, so that the mean over equal ranks is
    the loss of the global batch. `outputs` maps names to tensors.
    """

    def __call__(self, batch: Any) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
        """Compute the loss and outputs of a batch."""


class DistributedModel(Protocol):
    """A model on all ranks of a world.

    Covers the differences between a dense model (core/models/dense.py) and one with sharded tables
    (core/models/sharded.py), so that the rest of the trainer never asks which of them it has.
    """

    has_sharded_tables: bool
    """True if the model has tables with optimizers of their own, whose gradients differ between ranks."""
    average: WeightAverage | None
    """The moving average of the weights; None without training.ema_decay, and always with sharded tables."""

    @property
    def module(self) -> nn.Module:
        """The TrainableModel inside the wrapper. Its state is what checkpoints hold."""

    def __call__(self, batch: Any) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
        """Compute the loss and outputs of a batch. backward() averages the gradients over the ranks."""

    def replicate(self) -> None:
        """Prepare the dense parameters for training on several ranks, once their initial values are set. Collective."""

    def row_gradients(self) -> list[torch.Tensor]:
        """Return this rank's gradients of the rows that the last forward pass looked up in sharded tables."""

    def update_tables(self) -> None:
        """Update the sharded tables with row_gradients(). The next forward pass discards these. Collective."""

    def no_sync(self) -> contextlib.AbstractContextManager[Any]:
        """Return a context in which backward() does not average the gradients over the ranks."""

    def without_gradients(self) -> contextlib.AbstractContextManager[Any]:
        """Return a context for forward passes of an evaluation."""

    def averaged_weights(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which the model has the moving average of its weights, if there is one."""

    def share_buffers(self) -> None:
        """Give every rank the buffers of rank 0, and their averages. Collective."""

    def fused_optimizer_states(self) -> Mapping[str, torch.Tensor]:
        """Return the states of the optimizers of sharded tables, as `<parameter>.<state>`. Nothing is copied."""

    @property
    def num_parameters(self) -> int:
        """Number of trainable values, on all ranks together."""
