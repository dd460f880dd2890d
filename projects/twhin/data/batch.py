"""A batch of edges."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from common.batch import Batch


@dataclass(frozen=True)
class EdgeBatch(Batch):
    """Edges sorted by segment (see relations.py). Edges of one segment keep the reader's order.

    Attributes:
      lhs: rows of the left entities in their tables: [batch], int64.
      rel: ids of the relations: [batch], int64.
      rhs: rows of the right entities in their tables: [batch], int64.
      weights: weights of the edges: [batch], float32. Padding has weight 0.
      segment_sizes: number of edges of each segment, in the segments' order. The sum is the batch size.
      known: known edges for filtered ranks, by side ("lhs", "rhs"), in evaluation only. Each is a list of distinct
        pairs of a position in the batch and an entity, [2, pairs], int64. Replacing the entity on that side of the edge
        at that position with the entity of the pair gives another known edge. Pairs may contain the edge's own entity.
        Padding has no pairs.
      negatives: entities that the edge's own entity is compared with for AUC, by side, in evaluation only: [batch,
        draws], int64.
    """

    lhs: torch.Tensor
    rel: torch.Tensor
    rhs: torch.Tensor
    weights: torch.Tensor
    segment_sizes: tuple[int, ...]
    known: Mapping[str, torch.Tensor] = field(default_factory=dict)
    negatives: Mapping[str, torch.Tensor] = field(default_factory=dict)
