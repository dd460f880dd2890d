"""A data set of the Heavy Ranker: opens its files and builds batches from them."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from common.errors import ConfigError
from common.features.encoder import BINARY, CONTINUOUS, IDS, FeatureEncoder, embedding_key
from common.features.group_encoder import GROUPS, GroupEncoder
from common.features.layout import FeatureLayout
from common.reader.column import Column
from common.reader.encoder import CombinedEncoder, Encoder
from common.reader.order import check_lanes
from common.reader.parquet import ParquetTable
from common.reader.reader import BatchReader, Columns, PrefetchOptions
from projects.home.recap.data.batch import RecapBatch
from projects.home.recap.data.config import RecapDataConfig
from projects.home.recap.data.inputs import find_files
from projects.home.recap.data.labels import LabelBuilder
from projects.home.recap.data.preparation import ColumnsByName, Extracted, NegativeSampling, Preparation
from projects.home.recap.data.schema import Feature, FeatureWidths, feature_widths, read_features


class RecapDataset:
    """An open data set. Opening it raises every error that can be detected without reading rows."""

    def __init__(
        self,
        table: ParquetTable,
        features: Mapping[str, Feature],
        calibration_rates: Mapping[str, tuple[float, float]],
        make_batch: "_MakeBatch",
        sampling: NegativeSampling | None,
        config: RecapDataConfig,
        encoder: FeatureEncoder | None = None,
    ) -> None:
        self.table = table
        self.features = features
        """Features of the schema by name; empty with configured features."""
        self.layout = None if encoder is None else encoder.layout
        """Layout of the configured features; None without."""
        self.widths = feature_widths(features) if self.layout is None else layout_widths(self.layout)
        self.calibration_rates = calibration_rates
        """Sampling rates of positives and negatives that a model trained on these batches must correct for, by task;
        (1, 1) if the example weights already correct for sampling."""
        self._make_batch = make_batch
        self._sampling = sampling
        self._config = config
        self._encoder = encoder

    @classmethod
    def open(
        cls,
        config: RecapDataConfig,
        tasks: Sequence[str],
        key_path: str,
        *,
        evaluation: bool,
        num_ids: Mapping[int, int] | None = None,
        group_by: str | None = None,
        encoder: FeatureEncoder | None = None,
    ) -> Self:
        """Open a data set: read its schema, if it has one, and the footers of its files.

        Args:
          config: configuration of the data set.
          tasks: labels to read, in the order that batches have them.
          key_path: path of `config` within the whole configuration, for messages.
          evaluation: weight examples by the inverse of their sampling rates, so that metrics describe the data before
            sampling. In training, weigh_loss_by_sampling_rates decides.
          num_ids: number of valid ids by position in the discrete features. The values at these positions must be ids
            from 0 to n - 1; other positions may hold anything.
          group_by: column whose values are groups of examples for metrics.group_by; None reads no groups.
          encoder: encodes the configured features, which replace those of the schema.

        Raises:
          ConfigError: the configuration does not match the schema or the files.
          DataError: the files are missing, unreadable, or lack a column.
        """
        features = read_features(config, key_path) if encoder is None else {}
        columns_by_name = ColumnsByName(config, features, key_path)
        preparation = Preparation(config, tasks, columns_by_name, reference=evaluation)
        columns = feature_columns(features, num_ids) | preparation.columns
        downsample = config.preprocess.downsample_negatives if config.preprocess is not None else None
        sampling = None if downsample is None else NegativeSampling(downsample, len(config.tasks), key_path)
        weight_rates, calibration_rates = sampling_rates(config, tasks, evaluation=evaluation)
        encoders: list[Encoder] = [] if encoder is None else [encoder]
        if group_by is not None:
            encoders.append(GroupEncoder(group_by, "metrics.group_by"))
        table = ParquetTable(
            find_files(config, key_path),
            columns,
            prepare=preparation,
            cache=config.cache,
            encoder=CombinedEncoder(encoders),
        )
        columns_by_name.check_unambiguous(table.column_names, table.inputs)
        make_batch = _MakeBatch(weight_rates, () if encoder is None else encoder.layout.embeddings)
        return cls(table, features, calibration_rates, make_batch, sampling, config, encoder)

    def reader(self, rank: int, world_size: int) -> BatchReader[RecapBatch]:
        """Return a reader of this rank's share of the batches."""
        return BatchReader(
            self.table,
            self._make_batch,
            global_batch_size=self._config.global_batch_size,
            lanes=self._config.lanes,
            rank=rank,
            world_size=world_size,
            prefetch=PrefetchOptions.from_config(self._config),
            sampling=self._sampling,
        )

    def identity(self) -> dict[str, Any]:
        """Return JSON values that identify the rows, the features that are read, by name, and the vocabularies."""
        features = {name: feature.description() for name, feature in self.features.items()}
        identity = {"rows": self.table.fingerprint, "files": dict(self.table.files), "features": features}
        if self._encoder is not None:
            paths = {name: getattr(feature, "vocabulary", None) for name, feature in self._encoder.features.items()}
            identity["vocabularies"] = {
                name: self._encoder.vocabularies[path].description for name, path in paths.items() if path is not None
            }
        return identity

    def check_same_features(self, train: "RecapDataset", key_path: str) -> None:
        """Raise ConfigError if this data set's features differ from those of the training data.

        Args:
          train: the training data.
          key_path: path of this data set within the whole configuration, for messages.
        """
        if self.widths != train.widths:
            own, trained = _format_widths(self.features), _format_widths(train.features)
            raise ConfigError(
                f"{key_path}: its features are {own}, but those of train_data are {trained}. Use the same schema, "
                "features, truncation and masks"
            )
        for name, feature in self.features.items():
            if feature.positions != train.features[name].positions:
                raise ConfigError(
                    f"{key_path}: '{name}' does not use the same values as in train_data. Use the same mask in "
                    "preprocess.truncate_and_slice"
                )

    @property
    def evaluation_tasks(self) -> Sequence[str]:
        """Tasks to evaluate; empty means all tasks of the model."""
        return self._config.evaluation_tasks

    @property
    def has_reference(self) -> bool:
        """True if evaluation batches have the probabilities that labels were drawn from."""
        return self._config.reference_probability_prefix is not None


def check_batching(config: RecapDataConfig, key_path: str, world_size: int) -> None:
    """Raise ConfigError if the lanes do not divide the global batch or are not a multiple of the world size."""
    try:
        check_lanes(config.lanes, config.global_batch_size, world_size)
    except ConfigError as error:
        raise ConfigError(f"{key_path}: {error}") from None


def sampling_rates(
    config: RecapDataConfig, tasks: Sequence[str], *, evaluation: bool
) -> tuple[dict[str, tuple[float, float]], dict[str, tuple[float, float]]]:
    """Return the sampling rates of positives and negatives that the example weights and the model correct for, by task.

    Either the weights or the model correct for sampling, never both: the rates of the other one are (1, 1).
    """
    data = {name: config.tasks[name] for name in tasks}
    rates = {name: (task.pos_downsampling_rate, task.neg_downsampling_rate) for name, task in data.items()}
    no_sampling = dict.fromkeys(tasks, (1.0, 1.0))
    return (rates, no_sampling) if evaluation or config.weigh_loss_by_sampling_rates else (no_sampling, rates)


def feature_columns(
    features: Mapping[str, Feature], num_ids: Mapping[int, int] | None = None
) -> dict[Hashable, Column]:
    """Return the columns to read the features of a schema from, by the name of the feature.

    Args:
      features: the features by name.
      num_ids: number of valid ids by position in the discrete features; see RecapDataset.open().
    """
    return {name: _column(feature, num_ids if name == "discrete" else None) for name, feature in features.items()}


def feature_tensors(columns: Columns, embeddings: Mapping[str, str]) -> dict[str, Any]:
    """Return the features of a batch, under the names that RecapBatch and HeavyRanker have for them.

    Args:
      columns: columns of the batch.
      embeddings: keys of the configured features of kind embedding, by name.
    """
    return {
        "continuous": columns[CONTINUOUS] if CONTINUOUS in columns else columns["continuous"],
        "binary": columns[BINARY] if BINARY in columns else columns["binary"],
        "discrete": columns.get("discrete"),
        "user_embedding": columns.get("user_embedding"),
        "user_eng_embedding": columns.get("user_eng_embedding"),
        "author_embedding": columns.get("author_embedding"),
        "ids": columns.get(IDS),
        "embeddings": {name: columns[key] for name, key in embeddings.items()},
    }


def layout_widths(layout: FeatureLayout) -> FeatureWidths:
    """Return the widths of configured features."""
    return FeatureWidths(len(layout.continuous), len(layout.binary), layout.embeddings)


def _format_widths(features: Mapping[str, Feature]) -> str:
    return ", ".join(f"{name}[{feature.keep}]" for name, feature in features.items())


def _column(feature: Feature, num_ids: Mapping[int, int] | None) -> Column:
    keep: int | NDArray[np.intp] | None = feature.keep if feature.keep < feature.width else None
    if feature.positions is not None:
        keep = np.array(feature.positions, np.intp)
    return Column(feature.column, feature.dtype, feature.width, keep, narrow=feature.narrow, num_ids=num_ids)


class _MakeBatch:
    """Builds a RecapBatch from the columns that RecapDataset.open() requests."""

    def __init__(self, sampling_rates: Mapping[str, tuple[float, float]], embeddings: Iterable[str]) -> None:
        """Prepare the weights.

        Args:
          sampling_rates: sampling rates of positives and negatives that the example weights correct for, keyed by
            task in the order of labels and weights.
          embeddings: names of the configured features of kind embedding.
        """
        self._embeddings = {name: embedding_key(name) for name in embeddings}
        self._tasks = tuple(sampling_rates)
        self._labels = LabelBuilder(sampling_rates)

    def __call__(self, columns: Columns, weights: torch.Tensor) -> RecapBatch:
        labels = self._labels(columns, weights)
        return RecapBatch(
            **feature_tensors(columns, self._embeddings),
            **labels._asdict(),
            tasks=self._tasks,
            groups=columns.get(GROUPS),
            extracted={key.name: values for key, values in columns.items() if isinstance(key, Extracted)},
        )
