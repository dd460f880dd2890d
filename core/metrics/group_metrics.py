"""Computes metrics of several binary tasks within groups of examples, such as the examples of a user."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from numpy.typing import NDArray

from core.metrics import within_groups
from core.metrics.grouped_rows import GroupedRows
from core.metrics.within_groups import AUC, BOTH_CLASSES, COVERED_WEIGHT, NDCG, RECIPROCAL_RANK, WITH_POSITIVES


class GroupMetrics:
    """Accumulates metrics per task of how the examples of each group are ranked.

    - gauc: mean of the groups' AUROCs, weighted by the groups' weights, over groups with positives and negatives (Zhou
      et al. 2018, "Deep Interest Network for Click-Through Rate Prediction", arXiv 1706.06978). A group's
      AUROC is weighted by example; ties count half.
    - gauc_coverage: weight of these groups / weight of all examples, those without a group included.
    - groups_with_both_classes: number of these groups.
    - ndcg_at_<k>: mean NDCG@k of the groups with positives (Järvelin and Kekäläinen 2002, "Cumulated gain-based
      evaluation of IR techniques"): the gain is the label, the discount is 1 / log2(1 + rank), and the divisor is the
      gain of the best order.
    - mrr: mean over the groups with positives of 1 / rank of the first positive.
    - groups_with_positives: number of these groups.

    NDCG and MRR are averages over the orders of ties. They rank examples, so that weights do not affect them: an
    example with a weight above 0 has one rank, and each group counts once.
    """

    def __init__(self, tasks: int, device: torch.device, ndcg_at: Sequence[int]) -> None:
        """Initialize with zero examples.

        Args:
          tasks: number of tasks.
          device: device of the outputs.
          ndcg_at: values of k for ndcg_at_<k>.
        """
        self._tasks = tasks
        self._device = device
        self._ndcg_at = list(ndcg_at)
        self._rows = GroupedRows(tasks, device)
        self.means = ("gauc", *(f"ndcg_at_{k}" for k in self._ndcg_at), "mrr")
        """Names of the metrics whose means over tasks have a meaning."""

    def update(self, groups: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> None:
        """Add a batch: groups, int64 [batch], and logits, labels and weights, each [batch, tasks].

        Rows of the group NO_GROUP, and those of weight 0, are not ranked.
        """
        self._rows.update(groups, logits, labels, weights)

    def state(self) -> dict[str, NDArray[Any]]:
        """Return the examples that update() and add() have added in this process."""
        return self._rows.state()

    def add(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Add the examples that state() of another object has returned."""
        self._rows.add(state)

    def compute(self, weights: Sequence[float]) -> tuple[list[dict[str, float | int | None]], int]:
        """Return the metrics of each task over all ranks, and the number of groups. Collective.

        Args:
          weights: weight of all examples, by task.
        """
        groups, rows = self._rows.on_owners()
        sums = torch.zeros(self._tasks + 1, NDCG + len(self._ndcg_at), dtype=torch.float64)
        for task in range(self._tasks):
            logits, labels, row_weights = rows(task).nan_to_num(nan=0.0, posinf=torch.inf, neginf=-torch.inf).unbind(1)
            sums[task] = within_groups.sums_within_groups(groups, logits, labels, row_weights, self._ndcg_at)
        sums[-1, 0] = groups[-1] + 1 if len(groups) else 0
        if dist.is_initialized() and dist.get_world_size() > 1:
            on_device = sums.to(self._device)
            dist.all_reduce(on_device)
            sums = on_device.cpu()
        metrics = [self._metrics(row, weight) for row, weight in zip(sums.tolist(), weights, strict=False)]
        return metrics, int(sums[-1, 0])

    def _metrics(self, sums: Sequence[float], weight: float) -> dict[str, float | int | None]:
        covered, with_positives = sums[COVERED_WEIGHT], int(sums[WITH_POSITIVES])
        metrics: dict[str, float | int | None] = {
            "gauc": sums[AUC] / covered if covered > 0 else None,
            "gauc_coverage": covered / weight if weight > 0 else None,
            "groups_with_both_classes": int(sums[BOTH_CLASSES]),
        }
        for index, k in enumerate(self._ndcg_at, NDCG):
            metrics[f"ndcg_at_{k}"] = sums[index] / with_positives if with_positives else None
        metrics["mrr"] = sums[RECIPROCAL_RANK] / with_positives if with_positives else None
        metrics["groups_with_positives"] = with_positives
        return metrics
