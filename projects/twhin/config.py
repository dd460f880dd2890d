"""TwHIN's configuration."""

from typing import Any, ClassVar

import pydantic

from core.config.base_config import BaseConfig
from core.config.training import JobConfig
from projects.twhin.data.config import TwhinDataConfig
from projects.twhin.model.config import TwhinModelConfig


class RankingConfig(BaseConfig):
    """What evaluations measure. May change between a run and its resume."""

    candidates: pydantic.PositiveInt | None = pydantic.Field(
        None,
        description="Entities that an edge's own is ranked among, a sample drawn once, the same for all edges; null: "
        "all of the side's table.",
    )
    filtered: bool = pydantic.Field(
        True,
        description="Also rank with the other known edges left out: those of train_data, all validation_data and "
        "known_edges.",
    )
    known_edges: list[str] = pydantic.Field(
        [], description="Further files of known edges, each as data_root; for filtered ranks."
    )
    hits_at: list[pydantic.PositiveInt] = pydantic.Field(
        [1, 10, 50], description="Share of ranks up to this, for each."
    )
    per_relation: bool = pydantic.Field(True, description="Also measure each relation alone.")

    @pydantic.field_validator("hits_at")
    @classmethod
    def _differ(cls, hits_at: list[int]) -> list[int]:
        if twice := sorted({k for k in hits_at if hits_at.count(k) > 1}):
            raise ValueError(f"{', '.join(map(str, twice))} stands there twice; give each once")
        return hits_at


class TwhinConfig(JobConfig):
    """What a run of projects.twhin.main reads."""

    evaluation_only_keys: ClassVar[frozenset[str]] = frozenset({"validation_data", "metrics"})

    model: TwhinModelConfig = pydantic.Field(description="The model.")
    train_data: TwhinDataConfig = pydantic.Field(description="Edges to train on.")
    validation_data: dict[str, TwhinDataConfig] = pydantic.Field(
        {}, description="Edges to evaluate on: partitions by name, or a single one, called validation."
    )
    metrics: RankingConfig = pydantic.Field(RankingConfig(), description="What to measure on every partition.")

    @pydantic.field_validator("validation_data", mode="before")
    @classmethod
    def _single(cls, data: Any) -> Any:
        return {"validation": data} if isinstance(data, dict) and "data_root" in data else data

    def data_sets(self) -> dict[str, TwhinDataConfig]:
        """By their paths in the configuration, the training data first."""
        return {"train_data": self.train_data} | {
            f"validation_data.{name}": partition for name, partition in self.validation_data.items()
        }
