"""Keeps exact distributions of scores, in memory that grows with the number of examples."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from numpy.typing import NDArray

from core.metrics.scores import ScoreDistribution


def exact_bytes(examples: int, tasks: int, subsets: int, world_size: int) -> int:
    """Return the bytes that exact metrics need on each rank, at the end of an evaluation.

    Args:
      examples: number of examples that all ranks together evaluate.
      tasks: number of tasks.
      subsets: number of subsets of examples: one, and one for each stratum.
      world_size: number of ranks.
    """
    values = examples * tasks * (2 + subsets)
    # float32 and a float64 copy of the own examples and, with several ranks, two float64 copies of all.
    return 12 * values // world_size + (16 * values if world_size > 1 else 0)


class KeptScores:
    """Keeps every prediction with its label and weights.

    Memory: 4 * tasks * (2 + subsets) bytes per example on the rank that reads it. In
    addition to the reduction, over_all_ranks() gathers the examples of all ranks on each rank, which takes twice that
    number of bytes per example.
    """

    def __init__(self, subsets: int, tasks: int, device: torch.device) -> None:
        self._rank, self._world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        # [batch, (logit, label, weight in each subset), tasks].
        self._batches = [torch.zeros(0, 2 + subsets, tasks, device=device)]

    def update(self, logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> None:
        self._batches.append(torch.cat([logits[:, None], labels[:, None], weights], dim=1))

    def state(self) -> dict[str, NDArray[Any]]:
        return {"scores": torch.cat(self._batches).cpu().numpy()}

    def add(self, state: Mapping[str, NDArray[Any]]) -> None:
        self._batches.append(torch.from_numpy(state["scores"]).to(self._batches[0].device))

    def summands(self) -> torch.Tensor:
        """Return a vector of example counts by rank. Other ranks' entries are 0."""
        counts = torch.zeros(self._world_size, dtype=torch.float64, device=self._batches[0].device)
        counts[self._rank] = sum(len(batch) for batch in self._batches)
        return counts

    def over_all_ranks(self, sums: torch.Tensor) -> Callable[[int, int], ScoreDistribution]:
        rows = torch.cat(self._batches).double()
        if self._world_size > 1:
            rows = _gathered(rows, [int(count) for count in sums])
        rows = rows.cpu()

        def distribution(subset: int, task: int) -> ScoreDistribution:
            logits, labels, weights = rows[:, 0, task], rows[:, 1, task], rows[:, 2 + subset, task]
            present = weights > 0
            logits, labels, weights = logits[present], labels[present], weights[present]
            values, index = torch.unique(logits, return_inverse=True)
            negatives, positives = (
                torch.zeros_like(values).index_add_(0, index, part)
                for part in (weights * (1 - labels), weights * labels)
            )
            return ScoreDistribution(values, negatives, positives)

        return distribution


def _gathered(rows: torch.Tensor, counts: list[int]) -> torch.Tensor:
    """Return the rows [sum of counts, ...] of all ranks, concatenated in rank order. `counts` holds rows by rank."""
    padded = rows.new_zeros(max(counts), *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])
