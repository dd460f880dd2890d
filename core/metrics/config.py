"""Configures the metrics."""

from collections.abc import Iterable
from typing import Annotated, Self

import pydantic

from core.config.base_config import BaseConfig
from core.config.names import check_printable

_MEAN, _STRATUM = "mean", "stratum"

_NDCG_AT = [10]


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
        description="Compute AUROC, NRCE and PR-AUC exactly instead of from histograms. Every rank then holds the "
        "predictions for the whole partition in memory.",
    )

    group_by: str | None = pydantic.Field(
        None,
        min_length=1,
        description="Column of strings or integers in validation_data, such as user_id: also measure how the examples "
        "with the same value are ranked among each other (GAUC, NDCG, MRR). Every process then keeps the predictions "
        "for its examples in memory. null measures no groups.",
    )
    ndcg_at: list[Annotated[int, pydantic.Field(gt=0, lt=2**31)]] = pydantic.Field(
        _NDCG_AT, description="group_by only: values of k for NDCG@k, the NDCG of the k best examples of each group."
    )

    @pydantic.field_validator("thresholds", "ndcg_at")
    @classmethod
    def _differ(cls, values: list[float]) -> list[float]:
        if twice := sorted({value for value in values if values.count(value) > 1}):
            raise ValueError(f"{', '.join(map(str, twice))} is listed more than once; list each number once")
        return values

    @pydantic.model_validator(mode="after")
    def _ndcg_applies(self) -> Self:
        if self.group_by is None and self.ndcg_at != _NDCG_AT:
            raise ValueError("ndcg_at applies only to group_by. Set group_by, or remove ndcg_at")
        return self
