"""Configures the metrics."""

from typing import Annotated

import pydantic

from core.config.base_config import BaseConfig


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
