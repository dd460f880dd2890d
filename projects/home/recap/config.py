"""The Heavy Ranker's configuration."""

from collections.abc import Collection, Iterable
from typing import Any

import pydantic

from core.config.base_config import NotSupportedYet
from core.config.training import JobConfig
from projects.home.recap.data.config import RecapDataConfig
from projects.home.recap.model.config import ModelConfig
from projects.home.recap.optimizer import RecapOptimizerConfig


class RecapConfig(JobConfig):
    """What a run of projects.home.recap.main reads."""

    model: ModelConfig = pydantic.Field(description="The model.")
    train_data: RecapDataConfig = pydantic.Field(description="What to train on.")
    validation_data: dict[str, RecapDataConfig] = pydantic.Field(
        {}, description="What to evaluate on: partitions by name."
    )
    optimizer: RecapOptimizerConfig = pydantic.Field(description="How to update the model.")
    which_metrics: NotSupportedYet = pydantic.Field(None, description="Another choice of metrics.")

    def identity(self) -> dict[str, Any]:
        """As the base's, less the weights of the score: nothing is trained on it."""
        identity = super().identity()
        del identity["model"]["score_weights"]
        return identity

    @pydantic.model_validator(mode="after")
    def _tasks_match(self) -> "RecapConfig":
        """Every task of the model has labels in every data set, and a learning rate."""
        tasks = self.model.tasks
        problems = _missing("train_data.tasks", tasks, self.train_data.tasks)
        for name, data in self.validation_data.items():
            problems += _missing(f"validation_data.{name}.tasks", tasks, data.tasks)
        if (rates := self.optimizer.multi_task_learning_rates) is not None:
            place = "optimizer.multi_task_learning_rates.tower_learning_rates"
            problems += _missing(place, tasks, rates.tower_learning_rates)
            if unknown := [name for name in rates.tower_learning_rates if name not in tasks]:
                problems.append(f"{place} has {', '.join(unknown)} (not in model.tasks)")
        if problems:
            raise ValueError("; ".join(problems))
        return self


def _missing(place: str, tasks: Iterable[str], found: Collection[str]) -> list[str]:
    missing = [task for task in tasks if task not in found]
    return [f"{place} lacks {', '.join(missing)} (every key of model.tasks is needed)"] if missing else []
