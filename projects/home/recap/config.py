"""The Heavy Ranker's configuration."""

import hashlib
from collections.abc import Collection, Iterable
from typing import Any, ClassVar

import pydantic

from common.process.paths import user_path
from core.config.base_config import NotSupportedYet
from core.config.names import PartitionName
from core.config.training import JobConfig
from core.metrics.config import MetricsConfig
from projects.home.recap.data.config import RecapDataConfig
from projects.home.recap.model.config import ModelConfig
from projects.home.recap.optimizer.config import BACKBONE, RecapOptimizerConfig


class RecapConfig(JobConfig):
    """The whole configuration of projects.home.recap.main."""

    evaluation_only_keys: ClassVar[frozenset[str]] = frozenset({"validation_data", "metrics"})

    model: ModelConfig = pydantic.Field(description="The model to train.")
    train_data: RecapDataConfig = pydantic.Field(description="The data set to train on.")
    validation_data: dict[PartitionName, RecapDataConfig] = pydantic.Field(
        {}, description="Data sets to evaluate on, keyed by partition name."
    )
    metrics: MetricsConfig = pydantic.Field(MetricsConfig(), description="Metrics to compute on every partition.")
    optimizer: RecapOptimizerConfig = pydantic.Field(description="The optimizer and its learning rates.")
    which_metrics: NotSupportedYet = pydantic.Field(None, description="Selects a different set of metrics.")

    @pydantic.model_validator(mode="after")
    def _tasks_match(self) -> "RecapConfig":
        """Check that every task of the model has labels in every data set, and a learning rate."""
        tasks = self.model.tasks
        problems = _missing_tasks("train_data.tasks", tasks, self.train_data.tasks)
        for name, data in self.validation_data.items():
            problems += _missing_tasks(f"validation_data.{name}.tasks", tasks, data.tasks)
            if unknown := [task for task in data.evaluation_tasks if task not in tasks]:
                problems.append(_unknown_tasks(f"validation_data.{name}.evaluation_tasks", unknown))
        if self.train_data.evaluation_tasks:
            problems.append(
                "train_data.evaluation_tasks is set, but train_data is never evaluated. To evaluate on the training "
                "files, add a partition to validation_data with the same inputs"
            )
        if (rates := self.optimizer.multi_task_learning_rates) is not None:
            key_path = "optimizer.multi_task_learning_rates.tower_learning_rates"
            problems += _missing_tasks(key_path, tasks, rates.tower_learning_rates)
            if unknown := [name for name in rates.tower_learning_rates if name not in tasks]:
                problems.append(_unknown_tasks(key_path, unknown))
            if BACKBONE in tasks and rates.backbone_learning_rate is not None:
                problems.append(
                    f"model.tasks has the task {BACKBONE}, which is also the name of the shared parameters in the log "
                    "of learning rates. Rename the task and its label column"
                )
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def data_sets(self) -> dict[str, RecapDataConfig]:
        """Return the data sets keyed by their key paths in the configuration, training data first."""
        return {"train_data": self.train_data} | {
            f"validation_data.{name}": data for name, data in self.validation_data.items()
        }

    def identity(self) -> dict[str, Any]:
        """Return the settings that a resume must not change.

        Excludes settings that training does not depend on: score weights, metrics and prefetching. Adds a digest of
        each mask file to its path.
        """
        identity = super().identity()
        for key in ("score_weights", "score_weights_path", "stratifiers"):
            del identity["model"][key]
        for key in ("evaluation_tasks", "prefetch_batches", "decode_threads", "cache"):
            del identity["train_data"][key]
        backbone = identity["model"]["backbone"]
        for part in [*identity["model"]["tasks"].values(), *([backbone] if backbone else [])]:
            if part["loss_weight"] == 1:
                del part["loss_weight"]  # newer than some runs, whose identities lack it
        slices = (identity["train_data"]["preprocess"] or {}).get("truncate_and_slice") or {}
        for key in ("continuous_feature_mask_path", "binary_feature_mask_path"):
            if slices.get(key) is not None:
                slices[key] += f" ({_mask_digest(slices[key])})"
        return identity


def _mask_digest(mask_path: str) -> str:
    """Return a digest of the mask file's bytes."""
    return hashlib.blake2b(user_path(mask_path).read_bytes(), digest_size=16).hexdigest()


def _missing_tasks(key_path: str, tasks: Iterable[str], given: Collection[str]) -> list[str]:
    missing = [task for task in tasks if task not in given]
    return [f"{key_path} lacks {', '.join(missing)} (every key of model.tasks is required)"] if missing else []


def _unknown_tasks(key_path: str, unknown: Iterable[str]) -> str:
    return f"{key_path} has {', '.join(unknown)} (not in model.tasks)"
