"""A batch of edges."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from common.batch import Batch


@dataclass(frozen=True)
class EdgeBatch(Batch):
    """Edges, sorted by their segment (model/relations.py), and in their order within it.

    Attributes:
      lhs: [batch], int64, rows of the left entities in their tables.
      rel: [batch], int64, ids of the relations.
      rhs: [batch], int64, rows of the right entities in their tables.
      weights: [batch], float32; 0 for an edge that only fills the batch up.
      segment_sizes: edges of each segment of the model, in their order; they add up to batch.
      known: of evaluation, by side ("lhs", "rhs"): [2, pairs], int64, of positions in the batch and entities: with
        that entity on that side the edge is a known one too. Each pair is there once; the edge's own entity may be
        among them. None of edges that only fill up.
      negatives: of evaluation, by side: [batch, draws], int64, entities that the edge's own is compared with for AUC.
    """

    lhs: torch.Tensor
    rel: torch.Tensor
    rhs: torch.Tensor
    weights: torch.Tensor
    segment_sizes: tuple[int, ...]
    known: Mapping[str, torch.Tensor] = field(default_factory=dict)
    negatives: Mapping[str, torch.Tensor] = field(default_factory=dict)
