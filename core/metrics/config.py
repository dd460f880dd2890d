"""Configures the metrics."""

from collections.abc import Iterable
from typing import Annotated

import pydantic

from core.config.base_config import BaseConfig
from core.config.names import check_printable

_MEAN, _STRATUM = "mean", "stratum"


def check_task_names(tasks: Iterable[str]) -> None:
    """Raise ValueError if a metric of a task would have the name of another metric.

    Metric names begin with the task, with `mean/` for means over tasks, or with `stratum/` for subsets of the examples.
    """
    for task in tasks:
        if not task:
            raise ValueError("the name of a task is empty. Give each task a name")
        check_printable(task)
        if task in (_MEAN, _STRATUM) or task.startswith(f"{_STRATUM}/"):
            raise ValueError(
                f"the task name {task!r} is reserved: metric names begin with {_MEAN}/ for means over tasks and with "
                f"{_STRATUM}/ for subsets of the examples. Rename the task and its label column"
            )


class MetricsConfig(BaseConfig):
    """Configures optional metrics of an evaluation. May change between a run and its resume."""

    thresholds: list[Annotated[float, pydantic.Field(gt=0, lt=1)]] = pydantic.Field(
        [0.5],
        description="Thresholds for precision and recall: an example counts as predicted positive if p >= threshold.",
    )
    exact: bool = pydantic.Field(
        False,
        description="Compute AUROC and NRCE exactly instead of from histograms. Every rank then holds the predictions "
        "for the whole partition in memory.",
    )

    @pydantic.field_validator("thresholds")
    @classmethod
    def _differ(cls, thresholds: list[float]) -> list[float]:
        if twice := sorted({threshold for threshold in thresholds if thresholds.count(threshold) > 1}):
            raise ValueError(f"{', '.join(map(str, twice))} is listed more than once; list each threshold once")
        return thresholds
