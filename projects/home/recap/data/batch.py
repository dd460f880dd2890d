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
    """float32 [batch, continuous]. As for every feature, preprocess.downcast may choose a narrower type."""
    binary: torch.Tensor
    """float32 or uint8 [batch, binary]."""
    labels: torch.Tensor
    """float32 [batch, tasks], 0 or 1."""
    weights: torch.Tensor
    """float32 [batch, tasks]; 0 in rows that pad the batch."""
    tasks: tuple[str, ...]
    """Names of the columns of labels, weights and reference_probabilities."""
    discrete: torch.Tensor | None = None
    """int64 [batch, discrete]."""
    user_embedding: torch.Tensor | None = None
    """float32 [batch, width]."""
    user_eng_embedding: torch.Tensor | None = None
    """float32 [batch, width]."""
    author_embedding: torch.Tensor | None = None
    """float32 [batch, width]."""
    ids: torch.Tensor | None = None
    """int32 [batch, num_ids]: rows of the configured features' embedding tables (common/features/layout.py)."""
    embeddings: Mapping[str, torch.Tensor] = dataclasses.field(default_factory=dict)
    """Configured features of kind embedding by name, float32 [batch, length]."""
    reference_probabilities: torch.Tensor | None = None
    """float32 [batch, tasks]: the probabilities that the labels were drawn from, if the data has them."""
    groups: torch.Tensor | None = None
    """int64 [batch]: values of metrics.group_by as hashes, NO_GROUP where null; only in evaluation."""
    extracted: Mapping[str, torch.Tensor] = dataclasses.field(default_factory=dict)
    """Values of preprocess.extract_features, keyed by name: [batch], int64 if taken from discrete, else float32."""

    def in_order_of(self, tasks: Sequence[str]) -> Self:
        """Return this batch with the labels, weights and reference probabilities of `tasks`, in that order.

        Raises:
          ValueError: the batch has no labels for a task.
        """
        if self.tasks == tuple(tasks):
            return self
        if missing := [task for task in tasks if task not in self.tasks]:
            raise ValueError(f"the batch has no labels for {', '.join(missing)}; it has {', '.join(self.tasks)}")
        order = [self.tasks.index(task) for task in tasks]
        reference = self.reference_probabilities
        return dataclasses.replace(
            self,
            labels=self.labels[:, order],
            weights=self.weights[:, order],
            reference_probabilities=None if reference is None else reference[:, order],
            tasks=tuple(tasks),
        )
