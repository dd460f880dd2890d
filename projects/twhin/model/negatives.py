"""Entities that edges are told apart from: uniform ones of a table, and those of other edges of the batch.

Sampled as PyTorch-BigGraph does (arXiv 1903.12287, section 4.3), which mixes both kinds too.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from projects.twhin.data.batch import EdgeBatch
from projects.twhin.data.relations import SIDES, Relations, Side


@dataclass(frozen=True)
class Negatives:
    """What all edges of a batch whose entity on a side is of a table share as their negatives on that side.

    Attributes:
      uniform: by side and table: [global_negatives], int64, rows of the table.
      in_batch: by side and table: [up to in_batch_negatives], int64, positions among those edges, in the batch's order,
        whose entities they are; none twice.
    """

    uniform: Mapping[tuple[Side, str], torch.Tensor]
    in_batch: Mapping[tuple[Side, str], torch.Tensor]


def draw_negatives(batch: EdgeBatch, relations: Relations, global_negatives: int, in_batch_negatives: int) -> Negatives:
    """Draws them for every side and table that the model has edges of, with torch's default generator of the batch's
    device. An edge's own entity may be among them; edge_loss() leaves it out."""
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
