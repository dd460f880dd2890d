"""The Heavy Ranker's configuration."""

from collections.abc import Collection, Iterable
from typing import Any, ClassVar

import pydantic

from core.config.base_config import NotSupportedYet
from core.config.training import JobConfig
from core.metrics.config import MetricsConfig
from projects.home.recap.data.config import RecapDataConfig
from projects.home.recap.data.masks import mask_digest
from projects.home.recap.model.config import ModelConfig
from projects.home.recap.optimizer import RecapOptimizerConfig


class RecapConfig(JobConfig):
    """What a run of projects.home.recap.main reads."""

    evaluation_only_keys: ClassVar[frozenset[str]] = frozenset({"validation_data", "metrics"})

    model: ModelConfig = pydantic.Field(description="The model.")
    train_data: RecapDataConfig = pydantic.Field(description="What to train on.")
    validation_data: dict[str, RecapDataConfig] = pydantic.Field(
        {}, description="What to evaluate on: partitions by name."
    )
    metrics: MetricsConfig = pydantic.Field(MetricsConfig(), description="What to measure on every partition.")
    optimizer: RecapOptimizerConfig = pydantic.Field(description="How to update the model.")
    which_metrics: NotSupportedYet = pydantic.Field(None, description="Another choice of metrics.")

    @pydantic.model_validator(mode="after")
    def _tasks_match(self) -> "RecapConfig":
        """Every task of the model has labels in every data set, and a learning rate."""
        tasks = self.model.tasks
        problems = _missing("train_data.tasks", tasks, self.train_data.tasks)
        for name, data in self.validation_data.items():
            problems += _missing(f"validation_data.{name}.tasks", tasks, data.tasks)
            if unknown := [task for task in data.evaluation_tasks if task not in tasks]:
                place = f"validation_data.{name}.evaluation_tasks"
                problems.append(f"{place} has {', '.join(unknown)} (not in model.tasks)")
        if self.train_data.evaluation_tasks:
            problems.append(
                "train_data.evaluation_tasks is given, but nothing is evaluated on train_data; give the same inputs as "
                "a partition of validation_data"
            )
        if (rates := self.optimizer.multi_task_learning_rates) is not None:
            place = "optimizer.multi_task_learning_rates.tower_learning_rates"
            problems += _missing(place, tasks, rates.tower_learning_rates)
            if unknown := [name for name in rates.tower_learning_rates if name not in tasks]:
                problems.append(f"{place} has {', '.join(unknown)} (not in model.tasks)")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def data_sets(self) -> dict[str, RecapDataConfig]:
        """By their paths in the configuration, the training data first."""
        return {"train_data": self.train_data} | {
            f"validation_data.{name}": partition for name, partition in self.validation_data.items()
        }

    def identity(self) -> dict[str, Any]:
        """As the base's, less what training doesn't depend on: the weights of the score, what is measured, and how much
        data is held ready. With a digest of each mask file beside its path."""
        identity = super().identity()
        for key in ("score_weights", "stratifiers"):
            del identity["model"][key]
        for key in ("evaluation_tasks", "prefetch_batches", "decode_threads", "cache"):
            del identity["train_data"][key]
        slices = (identity["train_data"]["preprocess"] or {}).get("truncate_and_slice") or {}
        for key in ("continuous_feature_mask_path", "binary_feature_mask_path"):
            if slices.get(key) is not None:
                slices[key] += f" ({mask_digest(slices[key])})"
        return identity


def _missing(place: str, tasks: Iterable[str], found: Collection[str]) -> list[str]:
    missing = [task for task in tasks if task not in found]
    return [f"{place} lacks {', '.join(missing)} (every key of model.tasks is needed)"] if missing else []
