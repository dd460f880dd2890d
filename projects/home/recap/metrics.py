"""What is measured of the Heavy Ranker, and how the end of a run is told."""

import functools
from collections.abc import Callable

import tabulate
import torch

from common.measurement import Measurement
from core.metrics.interface import Metrics
from core.metrics.multi_task import MultiTaskMetrics
from projects.home.recap.config import RecapConfig
from projects.home.recap.data.dataset import RecapDataset

_COLUMNS = {
    "loss": "loss",
    "rce": "RCE",
    "auroc": "AUROC",
    "ctr": "CTR",
    "mean_prediction": "mean p",
    "share_of_reachable_rce": "reached",
}


def partition_metrics(config: RecapConfig, dataset: RecapDataset) -> Callable[[torch.device], Metrics]:
    """What makes the metrics of a partition of validation_data."""
    return functools.partial(MultiTaskMetrics, tuple(config.model.tasks), has_reference=dataset.has_reference)


def metrics_table(measurement: Measurement) -> str:
    """An evaluation's metrics, a row a task; a dash where one is not available.

    "mean p" is the mean prediction, "reached" the share of the reachable RCE.
    """
    metrics = measurement.metrics
    shown = {key: title for key, title in _COLUMNS.items() if any(name.endswith(f"/{key}") for name in metrics)}
    tasks = dict.fromkeys(name.rpartition("/")[0] for name in metrics if "/" in name)
    rows = [
        [task.removeprefix("recap.engagement."), *(_cell(key, metrics.get(f"{task}/{key}")) for key in shown)]
        for task in tasks
    ]
    return tabulate.tabulate(
        rows,
        headers=["task", *shown.values()],
        disable_numparse=True,
        colalign=("left", *("right" for _ in shown)),
    )


def _cell(key: str, value: float | int | None) -> str:
    if value is None:
        return "-"
    if key == "rce":
        return f"{value:.2f}"
    if key == "share_of_reachable_rce":
        return f"{value:.1%}" if value >= 0 else "<0%"
    return f"{value:.5f}" if key in ("ctr", "mean_prediction") else f"{value:.4f}"
