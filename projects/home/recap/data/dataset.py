"""From the files of a data set to batches of the Heavy Ranker."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from common.errors import ConfigError
from common.process.environment import local_world_size_from_env
from common.process.memory import memory_limit_in_bytes
from common.reader.column import Column
from common.reader.order import check_lanes
from common.reader.parquet import ParquetTable
from common.reader.reader import BatchReader, Columns, PrefetchOptions
from projects.home.recap.data.batch import RecapBatch
from projects.home.recap.data.config import RecapDataConfig
from projects.home.recap.data.inputs import find_files
from projects.home.recap.data.preparation import (
    EXTRACTED,
    LABELS,
    REFERENCES,
    WEIGHT,
    ColumnsByName,
    NegativeSampling,
    Preparation,
)
from projects.home.recap.data.schema import Feature, feature_widths, read_features
from projects.home.recap.model.config import SmallEmbeddingsConfig


class RecapDataset:
    """A data set whose metadata was checked: every mistake that shows without reading a row is raised here."""

    def __init__(
        self,
        table: ParquetTable,
        features: Mapping[str, Feature],
        calibration_rates: Mapping[str, tuple[float, float]],
        make_batch: "_MakeBatch",
        sampling: NegativeSampling | None,
        config: RecapDataConfig,
    ) -> None:
        self.table = table
        self.features = features
        self.widths = feature_widths(features)
        self.calibration_rates = calibration_rates
        """By task, the shares of positives and negatives that a model of these batches is still to be corrected for:
        (1, 1) where the weights of the examples make up for sampling."""
        self._make_batch = make_batch
        self._sampling = sampling
        self._config = config

    @classmethod
    def open(
        cls,
        config: RecapDataConfig,
        tasks: Sequence[str],
        path: str,
        *,
        evaluation: bool,
        small_embeddings: SmallEmbeddingsConfig | None = None,
    ) -> Self:
        """Reads schema and footers.

        Args:
          config: the data set.
          tasks: labels to read, in the order that batches shall have them.
          path: of `config` within the whole configuration, for messages.
          evaluation: weigh examples by the inverse of their sampling rates, so that metrics speak of the data before
            sampling; a model in training sees the examples as they were sampled, unless weigh_loss_by_sampling_rates.
          small_embeddings: the model's tables that discrete features are looked up in: ids beyond a table are mistakes
            in the data.

        Raises:
          ConfigError, DataError: what is wrong with schema or files.
        """
        features = read_features(config, path)
        num_ids = {"discrete": _num_ids(small_embeddings, feature_widths(features).discrete, path)}
        named = ColumnsByName(config, features, path)
        preparation = Preparation(config, tasks, named, reference=evaluation)
        columns: dict[Hashable, Column] = {
            name: _column(feature, num_ids.get(name)) for name, feature in features.items()
        }
        columns.update(preparation.columns.items())
        downsample = config.preprocess.downsample_negatives if config.preprocess is not None else None
        sampling = None if downsample is None else NegativeSampling(downsample, len(config.tasks), path)
        data = {task: config.tasks[task] for task in tasks}
        rates = {task: (of.pos_downsampling_rate, of.neg_downsampling_rate) for task, of in data.items()}
        none = dict.fromkeys(tasks, (1.0, 1.0))
        # Sampling is corrected once: by the weights of the examples, or else by the model.
        by_weights, by_model = (rates, none) if evaluation or config.weigh_loss_by_sampling_rates else (none, rates)
        table = ParquetTable(find_files(config, path), columns, prepare=preparation, cache=config.cache)
        named.check_unambiguous(table.column_names, table.inputs)
        if config.cache:
            _check_memory(table, path)
        return cls(table, features, by_model, _MakeBatch(by_weights), sampling, config)

    def reader(self, rank: int, world_size: int) -> BatchReader[RecapBatch]:
        """This rank's share of the batches."""
        return BatchReader(
            self.table,
            self._make_batch,
            global_batch_size=self._config.global_batch_size,
            lanes=self._config.lanes,
            rank=rank,
            world_size=world_size,
            prefetch=PrefetchOptions(
                self._config.prefetch_batches, self._config.decode_threads, self._config.shuffle_window or 1
            ),
            sampling=self._sampling,
        )

    def check_same_features(self, train: "RecapDataset", path: str) -> None:
        """Raises ConfigError where this data set's features are not those that the model is trained on."""
        if self.widths != train.widths:
            own, trained = _widths_told(self.features), _widths_told(train.features)
            raise ConfigError(
                f"{path}: its features are {own}, those of train_data {trained}; use the same schema, features, "
                "truncation and masks"
            )
        for name, feature in self.features.items():
            if feature.positions != train.features[name].positions:
                raise ConfigError(
                    f"{path}: of '{name}' it uses other values than train_data; use the same mask in "
                    "preprocess.truncate_and_slice"
                )

    @property
    def evaluation_tasks(self) -> Sequence[str]:
        """Tasks to measure; empty: all."""
        return self._config.evaluation_tasks

    @property
    def has_reference(self) -> bool:
        """Whether batches for evaluation bring the probabilities that labels were drawn from."""
        return self._config.reference_probability_prefix is not None


def check_batching(config: RecapDataConfig, path: str, world_size: int) -> None:
    """Raises ConfigError where global batch, lanes and number of processes don't fit each other."""
    try:
        check_lanes(config.lanes, config.global_batch_size, world_size)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _widths_told(features: Mapping[str, Feature]) -> str:
    return ", ".join(f"{name}[{feature.keep}]" for name, feature in features.items())


def _column(feature: Feature, num_ids: Mapping[int, int] | None) -> Column:
    keep: int | NDArray[np.intp] | None = feature.keep if feature.keep < feature.width else None
    if feature.positions is not None:
        keep = np.array(feature.positions, np.intp)
    return Column(feature.column, feature.dtype, feature.width, keep, narrow=feature.narrow, num_ids=num_ids)


def _num_ids(config: SmallEmbeddingsConfig | None, width: int, path: str) -> Mapping[int, int]:
    """By position in the discrete features, the ids that all tables there have."""
    num_ids: dict[int, int] = {}
    for table in config.tables if config is not None else ():
        if table.index >= width:
            found = f"has {width} discrete features" if width else "reads no discrete features"
            raise ConfigError(
                f"model.small_embeddings.tables: the table {table.name} has index {table.index}, but {path} {found}; "
                f"see {path}.seg_dense_schema"
            )
        num_ids[table.index] = min(table.num_embeddings, num_ids.get(table.index, table.num_embeddings))
    return num_ids


def _check_memory(table: ParquetTable, path: str) -> None:
    """Raises ConfigError where the decoded rows don't fit into this machine's memory."""
    needed = table.num_rows * table.bytes_per_row * local_world_size_from_env()
    memory = memory_limit_in_bytes()
    if needed > memory:
        raise ConfigError(
            f"{path}.cache: {table.num_rows} rows take {needed / 2**30:.1f} GiB when they are decoded, in all "
            f"processes together, and this machine has {memory / 2**30:.1f} GiB; leave cache out"
        )


class _MakeBatch:
    """Builds a RecapBatch of the columns that RecapDataset.open() asks for."""

    def __init__(self, sampling_rates: Mapping[str, tuple[float, float]]) -> None:
        """sampling_rates: by task, in the order of labels and weights."""
        self._tasks = tuple(sampling_rates)
        positive, negative = torch.tensor(list(sampling_rates.values())).T
        self._sampled = bool((positive != 1).any() or (negative != 1).any())
        self._positive_factor, self._negative_factor = 1 / positive, 1 / negative

    def __call__(self, columns: Columns, weights: torch.Tensor) -> RecapBatch:
        labels = columns[LABELS].float()
        if WEIGHT in columns:
            weights = weights * columns[WEIGHT]
        weights = weights[:, None].expand_as(labels).contiguous()
        if self._sampled:
            weights *= torch.where(labels == 1, self._positive_factor, self._negative_factor)
        return RecapBatch(
            continuous=columns["continuous"],
            binary=columns["binary"],
            labels=labels,
            weights=weights,
            tasks=self._tasks,
            discrete=columns.get("discrete"),
            user_embedding=columns.get("user_embedding"),
            user_eng_embedding=columns.get("user_eng_embedding"),
            author_embedding=columns.get("author_embedding"),
            reference_probabilities=columns[REFERENCES].float() if REFERENCES in columns else None,
            extracted={
                str(key).removeprefix(EXTRACTED): values
                for key, values in columns.items()
                if str(key).startswith(EXTRACTED)
            },
        )
