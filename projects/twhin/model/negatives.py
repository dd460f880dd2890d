"""Samples negatives for training: entities drawn uniformly from a table, and entities of other edges of the batch.

PyTorch-BigGraph mixes both kinds in the same way (arXiv 1903.12287, section 4.3).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from projects.twhin.data.batch import EdgeBatch
from projects.twhin.data.relations import SIDES, Relations, Side


@dataclass(frozen=True)
class Negatives:
    """Negatives by side and table. All edges of a batch whose entity on the side is in the table share them.

    Attributes:
      uniform: rows of the table: [global_negatives], int64.
      in_batch: distinct positions of the edges whose entities are the negatives, counted among the edges that share
        these negatives, in the order of the batch: [up to in_batch_negatives], int64.
    """

    uniform: Mapping[tuple[Side, str], torch.Tensor]
    in_batch: Mapping[tuple[Side, str], torch.Tensor]


def draw_negatives(batch: EdgeBatch, relations: Relations, global_negatives: int, in_batch_negatives: int) -> Negatives:
    """Draw negatives for every side and table that the relations use.

    Draws come from torch's default generator for the device of the batch. The negatives of an edge may contain its own
    entity, which edge_loss() ignores.
    """
    device = batch.lhs.device
    uniform, in_batch = {}, {}
    for side in SIDES:
        for table, positions in relations.segments_of(side).items():
            key = side, table
            rows = int(relations.num_entities[side][relations.segments[positions[0]].relations[0]])
            uniform[key] = torch.randint(rows, (global_negatives,), device=device)
            edges = sum(batch.segment_sizes[position] for position in positions)
            in_batch[key] = torch.randperm(edges, device=device)[:in_batch_negatives]
    return Negatives(uniform, in_batch)
