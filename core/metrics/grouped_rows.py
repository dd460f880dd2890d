"""Keeps the rows of groups, and brings all rows of a group to one rank.

Does not define what is measured within a group (within_groups.py).
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from numpy.typing import NDArray

from common.features.group_encoder import NO_GROUP

# Bytes per row while one task is measured: 48 to exchange it and, as was measured, up to 350 in within_groups.py.
_WORKING_BYTES = 400


def grouped_bytes(examples: int, tasks: int, world_size: int) -> int:
    """Return the bytes that metrics within groups need on each rank at the end of an evaluation.

    Groups are assumed to be small, so that each rank measures about the same number of rows.

    Args:
      examples: number of examples that all ranks together evaluate.
      tasks: number of tasks.
      world_size: number of ranks.
    """
    # The rows of all batches, and a copy in one piece.
    return examples * (2 * (8 + 12 * tasks) + _WORKING_BYTES) // world_size


class GroupedRows:
    """Keeps every prediction with its label, weight and group.

    Memory: 8 + 12 * tasks bytes per row on the rank that reads it. The rows of a group meet on the rank
    `group % world size`, one task after another.
    """

    def __init__(self, tasks: int, device: torch.device) -> None:
        self._world_size = dist.get_world_size() if dist.is_initialized() else 1
        self._groups = [torch.zeros(0, dtype=torch.int64, device=device)]
        # [batch, (logit, label, weight), tasks].
        self._values = [torch.zeros(0, 3, tasks, device=device)]

    def update(self, groups: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> None:
        """Add a batch: groups, int64 [batch], and logits, labels and weights, each [batch, tasks]."""
        self._groups.append(groups)
        self._values.append(torch.stack([logits, labels, weights], dim=1))

    def state(self) -> dict[str, NDArray[Any]]:
        """Return the rows that this process has read."""
        return {
            "groups": torch.cat(self._groups).cpu().numpy(),
            "rows in groups": torch.cat(self._values).cpu().numpy(),
        }

    def add(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Add the rows that state() of another object has returned."""
        self._groups.append(torch.from_numpy(state["groups"]).to(self._groups[0].device))
        self._values.append(torch.from_numpy(state["rows in groups"]).to(self._groups[0].device))

    def on_owners(self) -> tuple[torch.Tensor, Callable[[int], torch.Tensor]]:
        """Return the rows of the groups that this rank owns. Collective.

        Returns:
          Number of the group of each row, in ascending order, int64 [rows]; and a function from a task to the logit,
          label and weight of each of these rows, float64 [rows, 3], which is collective. All tensors are on the CPU.
          Rows without a group, and those with weight 0 for all tasks, are skipped.
        """
        groups, values = torch.cat(self._groups), torch.cat(self._values)
        owners = groups.remainder(self._world_size)
        owners[(groups == NO_GROUP) | (values[:, 2] <= 0).all(1)] = self._world_size  # the rank after the last one
        counts = owners.bincount(minlength=self._world_size + 1)[: self._world_size]
        sent = owners.argsort(stable=True)[: int(counts.sum())]
        received_counts = torch.empty_like(counts)
        if self._world_size > 1:
            dist.all_to_all_single(received_counts, counts)
        splits = counts.tolist(), received_counts.tolist()
        groups = self._exchanged(groups[sent], *splits).cpu()
        order = groups.argsort(stable=True)
        _, numbers = torch.unique_consecutive(groups[order], return_inverse=True)

        def rows(task: int) -> torch.Tensor:
            return self._exchanged(values[sent, :, task].double(), *splits).cpu()[order]

        return numbers, rows

    def _exchanged(self, rows: torch.Tensor, counts: list[int], received_counts: list[int]) -> torch.Tensor:
        """Send `rows`, which are in the order of their owners, and return those that this rank owns. Collective."""
        if self._world_size == 1:
            return rows
        received = rows.new_empty(sum(received_counts), *rows.shape[1:])
        dist.all_to_all_single(received, rows, received_counts, counts)
        return received
