"""Configuration of metrics."""

from typing import Annotated

import pydantic

from core.config.base_config import BaseConfig


class MetricsConfig(BaseConfig):
    """What evaluations measure beyond what they always do. May change between a run and its resume."""

    thresholds: list[Annotated[float, pydantic.Field(gt=0, lt=1)]] = pydantic.Field(
        [0.5], description="Precision and recall are those of predicting a positive where p >= threshold, for each."
    )
    exact: bool = pydantic.Field(
        False,
        description="Compute AUROC and NRCE without bins; every process then holds the predictions of the whole "
        "partition in memory.",
    )

    @pydantic.field_validator("thresholds")
    @classmethod
    def _differ(cls, thresholds: list[float]) -> list[float]:
        if twice := sorted({threshold for threshold in thresholds if thresholds.count(threshold) > 1}):
            raise ValueError(f"{', '.join(map(str, twice))} stands there twice; give each once")
        return thresholds
