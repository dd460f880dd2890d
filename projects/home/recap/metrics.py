"""The Heavy Ranker's metrics, and the table that reports them at the end of a run."""

import functools
import re
from collections.abc import Callable, Collection, Sequence

import tabulate
import torch

from common.errors import ConfigError
from common.process.environment import world_size_from_env
from common.process.memory import memory_shortage
from common.tracking.measurement import Measurement
from core.metrics.exact import exact_bytes
from core.metrics.grouped_rows import grouped_bytes
from core.metrics.interface import Metrics
from core.metrics.multi_task import MultiTaskMetrics
from projects.home.recap.config import RecapConfig
from projects.home.recap.data.dataset import RecapDataset
from projects.home.recap.data.schema import FeatureWidths
from projects.home.recap.model.config import StratifierConfig

_COLUMNS = {
    "loss": "loss",
    "rce": "RCE",
    "nrce": "NRCE",
    "auroc": "AUROC",
    "gauc": "GAUC",
    "ctr": "CTR",
    "calibration": "p/CTR",
    "share_of_reachable_rce": "reached",
}


def check_strata(stratifiers: Sequence[StratifierConfig], widths: FeatureWidths) -> None:
    """Raise ConfigError if a stratum refers to a discrete feature that the data does not have."""
    for position, stratifier in enumerate(stratifiers):
        if stratifier.index >= widths.discrete:
            raise ConfigError(
                f"model.stratifiers[{position}].index is {stratifier.index} (counted from 0), but the data has "
                f"{widths.discrete or 'no'} discrete features. Check seg_dense_schema in train_data and "
                "validation_data"
            )


def check_kept_predictions(config: RecapConfig, dataset: RecapDataset, key_path: str) -> None:
    """Check that every process can hold what metrics keep of the predictions for a data set.

    Exact metrics and metrics within groups keep all predictions, the others none.

    Args:
      config: configuration of the run.
      dataset: data set to evaluate.
      key_path: its key path in the configuration, for the message.

    Raises:
      ConfigError: there is too little memory.
    """
    examples = dataset.table.num_rows
    if (num_steps := config.training.num_eval_steps) > 0:
        examples = min(examples, num_steps * config.data_sets()[key_path].global_batch_size)
    tasks = len(dataset.evaluation_tasks or config.model.tasks)
    world_size = world_size_from_env()
    needed: dict[str, int] = {}
    if config.metrics.exact:
        needed["exact"] = exact_bytes(examples, tasks, 1 + len(config.model.stratifiers or ()), world_size)
    if config.metrics.group_by is not None:
        needed["group_by"] = grouped_bytes(examples, tasks, world_size)
    if shortage := memory_shortage(sum(needed.values())):
        keys = " and ".join(f"metrics.{key}" for key in needed)
        raise ConfigError(
            f"{keys}: keeping the predictions for {examples:,} examples of {key_path} {shortage}. Remove "
            f"{'one of these keys' if len(needed) > 1 else 'this key'}, or evaluate fewer examples"
        )


def evaluation_set_metrics(config: RecapConfig, dataset: RecapDataset) -> Callable[[torch.device], Metrics]:
    """Return a function that creates the metrics for one data set of validation_data on a device."""
    return functools.partial(
        MultiTaskMetrics,
        tuple(config.model.tasks),
        evaluation_tasks=dataset.evaluation_tasks,
        strata=[stratifier.name for stratifier in config.model.stratifiers or ()],
        thresholds=config.metrics.thresholds,
        exact=config.metrics.exact,
        has_reference=dataset.has_reference,
        ndcg_at=None if config.metrics.group_by is None else config.metrics.ndcg_at,
    )


def metrics_table(measurement: Measurement) -> str:
    """Format an evaluation's metrics as text.

    The first table has a row per task. A second table, if there are strata, has a row per stratum with the means over
    its tasks. A dash marks a metric that is not available. "p/CTR" is calibration; "reached" is the share of the
    reachable RCE.
    """
    metrics = measurement.metrics
    tasks = dict.fromkeys(
        name.rpartition("/")[0] for name in metrics if "/" in name and not name.startswith("stratum/")
    )
    labels = _short_labels(tasks)
    shown = [key for key in _COLUMNS if any(f"{task}/{key}" in metrics for task in tasks)]
    table = _table(
        ["task", *(_COLUMNS[key] for key in shown)],
        [[labels[task], *(_cell(key, metrics.get(f"{task}/{key}")) for key in shown)] for task in tasks],
    )
    strata = [name.removesuffix("/examples") for name in metrics if re.fullmatch("stratum/[^/]*/examples", name)]
    if not strata:
        return table
    means = [key for key in shown if f"{strata[0]}/mean/{key}" in metrics]
    strata_table = _table(
        ["mean of tasks in stratum", "examples", *(_COLUMNS[key] for key in means)],
        [
            [
                stratum.removeprefix("stratum/"),
                f"{metrics[f'{stratum}/examples']:,}",
                *(_cell(key, metrics[f"{stratum}/mean/{key}"]) for key in means),
            ]
            for stratum in strata
        ],
    )
    return f"{table}\n\n{strata_table}"


def _short_labels(tasks: Collection[str]) -> dict[str, str]:
    """Return each task's name without the prefix that the original's tasks share, unless that makes two names equal."""
    short = {task: task.removeprefix("recap.engagement.") for task in tasks}
    return short if len(set(short.values())) == len(short) else {task: task for task in tasks}


def _table(headers: list[str], rows: list[list[str]]) -> str:
    alignment = ("left", *("right" for _ in headers[1:]))
    return tabulate.tabulate(rows, headers=headers, disable_numparse=True, colalign=alignment)


def _cell(key: str, value: float | int | None) -> str:
    if value is None:
        return "-"
    if key == "share_of_reachable_rce":
        return f"{value:.1%}" if value >= 0 else "<0%"
    decimals = {"rce": 2, "nrce": 2, "calibration": 3, "ctr": 5}.get(key, 4)
    return f"{value:.{decimals}f}"
