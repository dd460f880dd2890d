"""Creates TwHIN's evaluation metrics, and formats them as the table at the end of a run."""

import functools
from collections.abc import Callable

import tabulate
import torch

from common.tracking.measurement import Measurement
from core.metrics.interface import Metrics
from core.metrics.ranking import FILTERED, RAW, RankingMetrics
from projects.twhin.config import TwhinConfig

_MAX_RELATIONS = 30
"""Maximum number of relations in the table."""


def partition_metrics(config: TwhinConfig) -> Callable[[torch.device], Metrics]:
    """Return a function that creates the metrics for an evaluation set on a device."""
    return functools.partial(
        RankingMetrics,
        [relation.name for relation in config.model.relation_list],
        hits_at=config.metrics.hits_at,
        filtered=config.metrics.filtered,
        per_relation=config.metrics.per_relation,
    )


def metrics_table(measurement: Measurement) -> str:
    """Format an evaluation's metrics as a table.

    The first row covers all edges. A row per relation that has edges follows, most edges first. A dash
    marks a metric that is not available. Columns show filtered ranks and the raw MRR, or raw ranks if there are no
    filtered ones.
    """
    metrics = measurement.metrics
    kind = FILTERED if f"{FILTERED}/mrr" in metrics else RAW
    hits = [name for name in metrics if name.startswith(f"{kind}/hits@")]
    columns = {f"{kind}/mrr": "MRR", **{name: f"Hits{name.partition('hits')[2]}" for name in hits}}
    columns |= {f"{kind}/mean_rank": "mean rank"} | ({f"{RAW}/mrr": "raw MRR"} if kind == FILTERED else {})
    columns |= {"auc": "AUC"}

    counts = {
        name.removesuffix("examples"): int(value or 0)
        for name, value in metrics.items()
        if name.startswith("relation/") and name.endswith("/examples") and value
    }
    relations = sorted(counts, key=lambda prefix: -counts[prefix])
    rows = [
        [
            prefix.removeprefix("relation/").removesuffix("/") or "all",
            f"{metrics[f'{prefix}examples']:,}",
            *(_cell(key, metrics[f"{prefix}{key}"]) for key in columns),
        ]
        for prefix in ["", *relations[:_MAX_RELATIONS]]
    ]
    headers = ["relation", "examples", *columns.values()]
    alignment = ("left", *("right" for _ in headers[1:]))
    table = tabulate.tabulate(rows, headers=headers, disable_numparse=True, colalign=alignment)
    hidden = len(relations) - _MAX_RELATIONS
    return f"{table}\nand {hidden} more relation(s) in metrics.jsonl" if hidden > 0 else table


def _cell(key: str, value: float | int | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.1f}" if key.endswith("mean_rank") else f"{value:.4f}"
