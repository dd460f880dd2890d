"""How high true entities are ranked among candidates: metrics of link prediction."""

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist

RAW, FILTERED = "raw", "filtered"

# Columns of the sums; behind them come those of each kind of ranks: of 1/rank, of the ranks, of each hits_at.
_EXAMPLES, _WEIGHT, _BEATEN = range(3)
_KINDS = 3


class RankingMetrics:
    """Of edges whose entity on either side was ranked among others, best first, from 1 on. Means over edges, weighted,
    and over both sides:

    - raw/mrr, filtered/mrr: mean reciprocal rank, 1/rank.
    - raw/hits@<k>, filtered/hits@<k>: share of ranks <= k.
    - raw/mean_rank, filtered/mean_rank: mean of the ranks.
    - auc: share of an edge's sampled negatives that score below it, ties half: the area under the ROC curve of each
      edge against its own negatives.

    With ties at their mean rank, ranks may end in a half. Filtered ranks are those without the other known edges
    (Bordes et al. 2013, "Translating Embeddings for Modeling Multi-relational Data", section 4.2).

    What is left without edges is None. State is sums in float64, reduced over the ranks once, when metrics are asked
    for.
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
        """Args:
        relations: names, by id.
        device: of the outputs.
        hits_at: each k of hits@<k>.
        filtered: outputs bring "filtered_ranks".
        per_relation: also measure each relation alone.
        """
        self._relations = list(relations)
        self._per_relation = per_relation
        self._hits_at = list(hits_at)
        self._kinds = [FILTERED, RAW] if filtered else [RAW]
        columns = _KINDS + len(self._kinds) * (2 + len(self._hits_at))
        self._sums = torch.zeros(len(self._relations), columns, dtype=torch.float64, device=device)

    @property
    def headline(self) -> tuple[str, ...]:
        """MRR and hits of the stricter kind of ranks, and AUC."""
        kind = self._kinds[0]
        return (f"{kind}/mrr", *(f"{kind}/hits@{k}" for k in self._hits_at), "auc")

    def update(self, outputs: Mapping[str, torch.Tensor]) -> None:
        """Adds a batch. "raw_ranks", where announced "filtered_ranks", and "negatives_beaten", a share: [batch, 2],
        one column for each side; "relations": [batch], ids; "weights": [batch]. A row of weight 0 counts as absent."""
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
        """All metrics, and `examples`, the number of edges; where asked for, the same of each relation as
        `relation/<name>/...`. Collective."""
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
