"""The Heavy Ranker's configuration."""

import hashlib
from collections.abc import Collection, Iterable, Mapping
from typing import Any, ClassVar

import pydantic

from common.features.config import CategoryFeature, Features, columns_of
from common.process.paths import user_path
from core.config.base_config import NotSupportedYet, located_errors
from core.config.names import PartitionName
from core.config.training import JobConfig
from core.config.yaml_document import KeyPath
from core.metrics.config import MetricsConfig
from projects.home.recap.data.config import RecapDataConfig
from projects.home.recap.model.config import ModelConfig
from projects.home.recap.optimizer.config import BACKBONE, RecapOptimizerConfig


class RecapConfig(JobConfig):
    """The whole configuration of projects.home.recap.main."""

    evaluation_only_keys: ClassVar[frozenset[str]] = frozenset({"validation_data", "metrics"})

    model: ModelConfig = pydantic.Field(description="The model to train.")
    features: Features | None = pydantic.Field(
        None,
        description="The features, which all data sets have in common (docs/features.md). null reads those of "
        "seg_dense_schema in each data set.",
    )
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

    @pydantic.model_validator(mode="after")
    def _features_are_known(self) -> "RecapConfig":
        """Check that each data set has either a schema or the common features."""
        if self.features is not None:
            problems = self._replaced_keys() | self._leaks(self.features)
        else:
            data_sets = self._data_by_key_path()
            missing = [(*key_path, "seg_dense_schema") for key_path, data in data_sets if data.seg_dense_schema is None]
            problems = dict.fromkeys(
                missing, "missing; name a schema, or list the features in the top-level key features"
            )
        if problems:
            raise located_errors(problems)
        return self

    @pydantic.model_validator(mode="after")
    def _position_is_known(self) -> "RecapConfig":
        """Check that the position for position_debias_config is a feature of the kind that it needs."""
        config = self.model.position_debias_config
        if config is None:
            return self
        key, name = "position_feature", config.position_feature
        problem = None
        if self.features is None:
            if name is not None:
                problem = "names a feature of the top-level key features, which is missing. Set position_feature_index"
        elif name is None:
            key = "position_feature_index"
            problem = "does not apply with the top-level key features. Set position_feature to the name of a feature"
        else:
            feature = self.features.get(name)
            if not isinstance(feature, CategoryFeature) or feature.num_values is None:
                known = [key for key, each in self.features.items() if getattr(each, "num_values", None) is not None]
                problem = (
                    f"{name} is not a feature of kind category with num_values, which the position must be. Such "
                    f"features: {', '.join(known) or 'none'}"
                )
        if problem is not None:
            raise located_errors({("model", "position_debias_config", key): problem})
        return self

    def _replaced_keys(self) -> dict[KeyPath, str]:
        """Return a problem for each key that the top-level features replace."""
        keys: list[KeyPath] = []
        for key_path, data in self._data_by_key_path():
            if data.seg_dense_schema is not None:
                keys.append((*key_path, "seg_dense_schema"))
            for name in ("truncate_and_slice", "downcast", "extract_features"):
                if getattr(data.preprocess, name, None) is not None:
                    keys += [(*key_path, "preprocess", name)]
        keys += [
            ("model", name) for name in ("small_embeddings", "stratifiers") if getattr(self.model, name) is not None
        ]
        problem = "does not apply, because the top-level key features says what is read. Remove this key, or features"
        return dict.fromkeys(keys, problem)

    def _leaks(self, features: Features) -> dict[KeyPath, str]:
        """Return a problem for each feature that reads a column that only a row with a known label has."""
        known_with: dict[str, str] = {}
        for _, data in self._data_by_key_path():
            for task in data.tasks:
                known_with[task] = f"the label of {task}"
                if data.reference_probability_prefix is not None:
                    known_with[data.reference_probability_prefix + task] = f"the probability of {task}"
            rectify = data.preprocess.rectify_labels if data.preprocess is not None else None
            for task, column in (rectify.label_to_engaged_timestamp_field if rectify is not None else {}).items():
                known_with[column] = f"the time of {task}"
        problems: dict[KeyPath, str] = {}
        for name, feature in features.items():
            for column in columns_of(name, feature):
                if column in known_with:
                    problems["features", name] = (
                        f"reads the column {column}, which is {known_with[column]}. It would tell the model what to "
                        "predict. Remove the feature"
                    )
        return problems

    def _data_by_key_path(self) -> list[tuple[KeyPath, RecapDataConfig]]:
        validation = self.validation_data.items()
        return [(("train_data",), self.train_data), *((("validation_data", name), data) for name, data in validation)]

    def data_sets(self) -> dict[str, RecapDataConfig]:
        """Return the data sets keyed by their key paths in the configuration, training data first."""
        return {"train_data": self.train_data} | {
            f"validation_data.{name}": data for name, data in self.validation_data.items()
        }

    @property
    def input_files(self) -> tuple[KeyPath, ...]:
        """The key paths of the schema, masks, statistics, score weights and vocabularies of the model."""
        slices = ("train_data", "preprocess", "truncate_and_slice")
        key_paths: list[KeyPath] = [
            ("train_data", "seg_dense_schema", "schema_path"),
            (*slices, "continuous_feature_mask_path"),
            (*slices, "binary_feature_mask_path"),
            ("model", "featurization_config", "z_score_log_config", "analysis_path"),
            ("model", "score_weights_path"),
            *(("features", name, "vocabulary") for name in self.features or ()),
        ]
        return tuple(key_path for key_path in key_paths if _value_at(self, key_path) is not None)

    def identity(self) -> dict[str, Any]:
        """Return the settings that a resume must not change.

        Excludes settings that training does not depend on: score weights, metrics and prefetching. Adds a digest of
        each mask file and of a file with statistics to its path, and has a digest of each vocabulary in place of its
        path.
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
        z_score = identity["model"]["featurization_config"]["z_score_log_config"]
        if z_score is not None:
            z_score["analysis_path"] += f" ({_file_digest(z_score['analysis_path'])})"
        slices = (identity["train_data"]["preprocess"] or {}).get("truncate_and_slice") or {}
        for key in ("continuous_feature_mask_path", "binary_feature_mask_path"):
            if slices.get(key) is not None:
                slices[key] += f" ({_file_digest(slices[key])})"
        if self.features is not None:
            _identify_vocabularies(self.features, identity["features"])
            # The layout follows the order of the features, which a comparison by key does not see.
            identity["order of features"] = list(self.features)
        return identity


def _value_at(config: RecapConfig, key_path: KeyPath) -> Any:
    """Return the value at a key path, or None if it or one of its parents is missing."""
    value: Any = config
    for key in key_path:
        value = value.get(key) if isinstance(value, Mapping) else getattr(value, str(key), None)
    return value


def _identify_vocabularies(features: Features, identity: dict[str, Any]) -> None:
    """Replace the path of each vocabulary in the identity of the features by what identifies its content."""
    from common.features.vocabulary import read_vocabularies  # takes long

    vocabularies = read_vocabularies(features)
    for each in identity.values():
        if (path := each.get("vocabulary")) is not None:
            each["vocabulary"] = vocabularies[path].description


def _file_digest(path: str) -> str:
    """Return a digest of the bytes of a file."""
    return hashlib.blake2b(user_path(path).read_bytes(), digest_size=16).hexdigest()


def _missing_tasks(key_path: str, tasks: Iterable[str], given: Collection[str]) -> list[str]:
    missing = [task for task in tasks if task not in given]
    return [f"{key_path} lacks {', '.join(missing)} (every key of model.tasks is required)"] if missing else []


def _unknown_tasks(key_path: str, unknown: Iterable[str]) -> str:
    return f"{key_path} has {', '.join(unknown)} (not in model.tasks)"
