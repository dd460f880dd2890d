"""Samples negatives for evaluation. They depend on the edge and the seed, not on the batch or the rank."""

import numpy as np
import torch
from numpy.typing import NDArray

from projects.twhin.data.config import TwhinDataConfig
from projects.twhin.data.relations import SIDES, Relations, Side

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class EvaluationNegatives:
    """Draws entities uniformly and independently from the tables of each edge, except the edge's own entity."""

    def __init__(self, config: TwhinDataConfig, relations: Relations, seed: int) -> None:
        """Set the number of draws and the seed.

        Args:
          config: configuration of the evaluation set. It sets the number of negatives per edge and side; at least one
            is drawn.
          relations: relations of the model.
          seed: seed of the draws.
        """
        self._count = max(1, config.global_negatives + config.in_batch_negatives)
        self._num_entities = relations.num_entities
        self._seed = np.array([seed & 0xFFFFFFFFFFFFFFFF], np.uint64)

    def __call__(self, lhs: torch.Tensor, rel: torch.Tensor, rhs: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return EdgeBatch.negatives.

        If a table has only one row, the negatives are the edge's own entity.

        Args:
          lhs, rel, rhs: the edges, each [batch], int64.
        """
        edge_hash = self._seed
        for part in (lhs, rel, rhs):
            edge_hash = _hash(edge_hash + part.numpy().view(np.uint64))
        own: dict[Side, NDArray[np.int64]] = {"lhs": lhs.numpy(), "rhs": rhs.numpy()}
        draws = np.arange(1, self._count + 1, dtype=np.uint64)
        drawn: dict[str, torch.Tensor] = {}
        for index, side in enumerate(SIDES):
            side_hash = _hash(edge_hash + np.uint64(index))
            random = _hash(side_hash[:, None] + draws * _GOLDEN)
            others = self._num_entities[side][rel.numpy()][:, None] - 1
            entities = (random % np.maximum(others, 1).astype(np.uint64)).astype(np.int64)
            entities += (entities >= own[side][:, None]) & (others > 0)
            drawn[side] = torch.from_numpy(entities)
        return drawn


def _hash(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Hash numbers with SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators")."""
    z = numbers + _GOLDEN
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
