"""The sampled negatives of evaluation: functions of the edge, not of its batch or rank."""

import numpy as np
import torch
from numpy.typing import NDArray

from projects.twhin.data.config import TwhinDataConfig
from projects.twhin.data.relations import SIDES, Relations, Side

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class EvaluationNegatives:
    """Draws entities of each edge's tables, uniformly and independently, but its own."""

    def __init__(self, config: TwhinDataConfig, relations: Relations, seed: int) -> None:
        """Args:
        config: of the partition; says how many each edge has on a side, at least 1.
        relations: of the model.
        seed: of the draws.
        """
        self._count = max(1, config.global_negatives + config.in_batch_negatives)
        self._num_entities = relations.num_entities
        self._seed = np.array([seed & 0xFFFFFFFFFFFFFFFF], np.uint64)

    def __call__(self, lhs: torch.Tensor, rel: torch.Tensor, rhs: torch.Tensor) -> dict[str, torch.Tensor]:
        """EdgeBatch.negatives of edges lhs, rel and rhs: [batch], int64. A table of one row has its own alone."""
        of_edge = self._seed
        for part in (lhs, rel, rhs):
            of_edge = _mixed(of_edge + part.numpy().view(np.uint64))
        own: dict[Side, NDArray[np.int64]] = {"lhs": lhs.numpy(), "rhs": rhs.numpy()}
        draws = np.arange(1, self._count + 1, dtype=np.uint64)
        drawn: dict[str, torch.Tensor] = {}
        for index, side in enumerate(SIDES):
            of_side = _mixed(of_edge + np.uint64(index))
            random = _mixed(of_side[:, None] + draws * _GOLDEN)
            others = self._num_entities[side][rel.numpy()][:, None] - 1
            entities = (random % np.maximum(others, 1).astype(np.uint64)).astype(np.int64)
            entities += (entities >= own[side][:, None]) & (others > 0)
            drawn[side] = torch.from_numpy(entities)
        return drawn


def _mixed(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's step (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators")."""
    z = numbers + _GOLDEN
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
