"""A batch of the Heavy Ranker."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Self

import torch

from common.batch import Batch


@dataclasses.dataclass(frozen=True)
class RecapBatch(Batch):
    """Features, labels and weights of candidate tweets."""

    continuous: torch.Tensor
    """float32 [batch, continuous], or the type that preprocess.downcast gives it; so are the other features."""
    binary: torch.Tensor
    """float32 [batch, binary]."""
    labels: torch.Tensor
    """0 or 1, float32 [batch, tasks]."""
    weights: torch.Tensor
    """float32 [batch, tasks]; 0 where a row only fills the batch up."""
    tasks: tuple[str, ...]
    """Names of the columns of labels and weights."""
    discrete: torch.Tensor | None = None
    """int64 [batch, discrete]."""
    user_embedding: torch.Tensor | None = None
    """float32 [batch, width], as the two below."""
    user_eng_embedding: torch.Tensor | None = None
    author_embedding: torch.Tensor | None = None
    reference_probabilities: torch.Tensor | None = None
    """float32 [batch, tasks]: the probabilities that the labels were drawn from, where the data knows them."""
    extracted: Mapping[str, torch.Tensor] = dataclasses.field(default_factory=dict)
    """The values of preprocess.extract_features by name, each [batch]: int64 those of discrete, float32 the others."""

    def in_order_of(self, tasks: Sequence[str]) -> Self:
        """The same batch with labels, weights and reference probabilities of `tasks`, in their order.

        Raises:
          ValueError: the batch has no labels of a task.
        """
        if self.tasks == tuple(tasks):
            return self
        if missing := [task for task in tasks if task not in self.tasks]:
            raise ValueError(f"no labels of {', '.join(missing)} in the batch; it has {', '.join(self.tasks)}")
        order = [self.tasks.index(task) for task in tasks]
        reference = self.reference_probabilities
        return dataclasses.replace(
            self,
            labels=self.labels[:, order],
            weights=self.weights[:, order],
            reference_probabilities=None if reference is None else reference[:, order],
            tasks=tuple(tasks),
        )
