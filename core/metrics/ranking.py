"""Computes link prediction metrics: how high the true entities rank among the candidates."""

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist

RAW, FILTERED = "raw", "filtered"

# Columns of the sums. The columns after them hold, for each kind of ranks, 1/rank, the rank, and each hits_at.
_EXAMPLES, _WEIGHT, _BEATEN = range(3)
_KINDS = 3


class RankingMetrics:
    """Accumulates ranking metrics over edges. Each metric is a weighted mean over edges and a mean over both sides.

    The entity on each side of an edge is ranked among candidates; the best rank is 1.

    - raw/mrr, filtered/mrr: mean reciprocal rank, 1/rank.
    - raw/hits@<k>, filtered/hits@<k>: share of ranks <= k.
    - raw/mean_rank, filtered/mean_rank: mean of the ranks.
    - auc: share of an edge's sampled negatives that score below it; ties count half. This is the area under the ROC
      curve of each edge against its own negatives.

    Ties share their mean rank, so a rank can end in .5. Filtered ranks ignore the other known edges (Bordes et al.
    2013, "Translating Embeddings for Modeling Multi-relational Data", section 4.2).

    A metric without edges is None. The state is sums in float64, and compute() reduces it over the ranks (processes)
    once.
    """

    def __init__(
        self,
        relations: Sequence[str],
        device: torch.device,
        *,
        hits_at: Sequence[int],
        filtered: bool,
        per_relation: bool,
    ) -> None:
        """Initialize with zero edges.

        Args:
          relations: names of the relations, by id.
          device: device of the outputs.
          hits_at: values of k for hits@<k>.
          filtered: whether the outputs contain "filtered_ranks".
          per_relation: also measure each relation separately.
        """
        self._relations = list(relations)
        self._per_relation = per_relation
        self._hits_at = list(hits_at)
        self._kinds = [FILTERED, RAW] if filtered else [RAW]
        columns = _KINDS + len(self._kinds) * (2 + len(self._hits_at))
        self._sums = torch.zeros(len(self._relations), columns, dtype=torch.float64, device=device)

    @property
    def headline(self) -> tuple[str, ...]:
        """Names of the MRR and hits of the filtered ranks (raw if there are none), and of the AUC."""
        kind = self._kinds[0]
        return (f"{kind}/mrr", *(f"{kind}/hits@{k}" for k in self._hits_at), "auc")

    def update(self, outputs: Mapping[str, torch.Tensor]) -> None:
        """Add a batch. A row with weight 0 counts as absent.

        Args:
          outputs: "raw_ranks", "negatives_beaten" (a share) and, if `filtered`, "filtered_ranks", each [batch, 2] with
            a column per side; "relations", ids [batch]; "weights" [batch].
        """
        weights = outputs["weights"].double()
        present = weights > 0
        columns = [present.double(), weights, weights * outputs["negatives_beaten"].double().mean(1)]
        for kind in self._kinds:
            ranks = outputs[f"{kind}_ranks"].double()
            columns += [weights * ranks.reciprocal().mean(1), weights * ranks.mean(1)]
            columns += [weights * (ranks <= k).double().mean(1) for k in self._hits_at]
        rows = torch.stack(columns, dim=1)
        self._sums.index_add_(0, outputs["relations"][present], rows[present])

    def compute(self) -> dict[str, float | int | None]:
        """Return all metrics and `examples`, the number of edges. Collective.

        If per_relation, the same metrics for each relation follow as `relation/<name>/...`.
        """
        sums = self._sums.clone()
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(sums)
        sums = sums.cpu()
        metrics = self._metrics(sums.sum(0).tolist())
        if self._per_relation:
            for name, row in zip(self._relations, sums.tolist(), strict=True):
                metrics |= {f"relation/{name}/{key}": value for key, value in self._metrics(row).items()}
        return metrics

    def _metrics(self, sums: Sequence[float]) -> dict[str, float | int | None]:
        weight = sums[_WEIGHT]
        values: dict[str, float | int | None] = {"examples": int(sums[_EXAMPLES])}
        names = ["mrr", "mean_rank", *(f"hits@{k}" for k in self._hits_at)]
        keys = ["auc", *(f"{kind}/{name}" for kind in self._kinds for name in names)]
        for key, value in zip(keys, sums[_BEATEN:], strict=True):
            values[key] = value / weight if weight > 0 else None
        return values
