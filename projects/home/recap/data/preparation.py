"""Selects the columns to read in addition to the features, and prepares decoded row groups for batching.

preprocess.py has the formulas.
"""

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from common.errors import ConfigError
from common.reader.column import Column, Values
from common.reader.parquet import RowGroup
from projects.home.recap.data.config import (
    DownsampleNegatives,
    ExtractFeaturesRow,
    Preprocess,
    RecapDataConfig,
    RectifyLabels,
)
from projects.home.recap.data.preprocess import downsampled, rectified
from projects.home.recap.data.schema import Feature

LABELS, WEIGHT, REFERENCES = "labels", "weight", "references"
"""Keys of prepared columns: labels [rows, tasks], weight [rows], references [rows, tasks]."""
_IS_POSITIVE = "is positive"


@dataclass(frozen=True)
class ColumnKey:
    """Key of a column that the configuration names. Its class says what the column is used for.

    Keys of different classes are never equal, so one column may be read as a label and as a timestamp.
    """

    name: str


class Label(ColumnKey):
    """Key of a label column."""


class Reference(ColumnKey):
    """Key of the column with the probability that the label of a task was drawn from; `name` is the task."""


class Timestamp(ColumnKey):
    """Key of a column of times, used to rectify labels."""


class Extracted(ColumnKey):
    """Key of a value of preprocess.extract_features. Prepared row groups and batches keep these columns."""


class ColumnsByName:
    """Finds a column by name: a column of the files, or a value extracted from a feature."""

    def __init__(self, config: RecapDataConfig, features: Mapping[str, Feature], key_path: str) -> None:
        """Check the values to extract.

        Args:
          config: configuration of the data set.
          features: the features that are read, by name.
          key_path: path of `config` within the whole configuration, for messages.

        Raises:
          ConfigError: a value to extract does not exist.
        """
        extract = config.preprocess.extract_features if config.preprocess is not None else None
        self._extracted = {row.name: row for row in extract.extract_feature_table} if extract is not None else {}
        self._features = features
        self._key_path = f"{key_path}.preprocess.extract_features.extract_feature_table"
        for row in self._extracted.values():
            if row.source_tensor not in features:
                raise ConfigError(
                    f"{self._key_path}: '{row.name}' has source_tensor '{row.source_tensor}', which is not one of the "
                    f"features that are read: {', '.join(features)}"
                )
            if row.index >= (width := features[row.source_tensor].width):
                raise ConfigError(
                    f"{self._key_path}: '{row.name}' has index {row.index} (counted from 0), but "
                    f"'{row.source_tensor}' has {width} values"
                )

    def column(self, name: str, dtype: torch.dtype = torch.float32, values: Values | None = None) -> Column:
        """Return the column of this name. An extracted value may be stored as a float even if `dtype` is an integer."""
        if name not in self._extracted:
            return Column(name, dtype, values=values)
        return self._extracted_value(self._extracted[name], dtype if dtype.is_floating_point else torch.float64, values)

    def extracted(self) -> dict[str, Column]:
        """Return all extracted values, each with the dtype in which the model uses its feature."""
        rows = self._extracted.values()
        return {row.name: self._extracted_value(row, self._features[row.source_tensor].dtype, None) for row in rows}

    def check_unambiguous(self, column_names: Collection[str], inputs: str) -> None:
        """Raise ConfigError if an extracted value has the name of a column of the files."""
        for name in self._extracted:
            if name in column_names:
                raise ConfigError(f"{self._key_path}: '{name}' is also a column of {inputs}. Choose another name")

    def _extracted_value(self, row: ExtractFeaturesRow, dtype: torch.dtype, values: Values | None) -> Column:
        feature = self._features[row.source_tensor]
        return Column(feature.column, dtype, feature.width, position=row.index, values=values)


class Preparation:
    """Rectifies labels, marks positive rows, and stacks the per-task columns so that a batch gathers each row once."""

    def __init__(
        self, config: RecapDataConfig, tasks: Sequence[str], columns_by_name: ColumnsByName, *, reference: bool
    ) -> None:
        """Select the columns to read.

        Args:
          config: configuration of the data set.
          tasks: tasks of the batches, in order.
          columns_by_name: the columns that the configuration may name.
          reference: True to read the probabilities that labels were drawn from, if the data has them.
        """
        preprocess = config.preprocess or Preprocess()
        downsample = preprocess.downsample_negatives
        self._tasks = tasks
        self._engagements = [] if downsample is None else downsample.engagements_list or list(config.tasks)
        labels = dict.fromkeys([*tasks, *self._engagements])
        self.columns: dict[Hashable, Column] = {
            Label(label): columns_by_name.column(label, values="label") for label in labels
        }
        """The columns to read."""
        if config.weight_column is not None:
            self.columns[WEIGHT] = columns_by_name.column(config.weight_column, values="weight")
        prefix = config.reference_probability_prefix if reference else None
        self._has_reference = prefix is not None
        if prefix is not None:
            self.columns |= {
                Reference(task): columns_by_name.column(prefix + task, values="probability") for task in tasks
            }
        self.columns |= {Extracted(name): column for name, column in columns_by_name.extracted().items()}
        self._rectify = preprocess.rectify_labels
        if self._rectify is not None:
            fields = [self._rectify.served_timestamp_field, self._rectify.impressed_timestamp_field]
            engaged_at = self._rectify.label_to_engaged_timestamp_field
            fields += [field for label, field in engaged_at.items() if label in labels]
            self.columns |= {Timestamp(field): columns_by_name.column(field, torch.int64) for field in fields}

    def __call__(self, stored: RowGroup) -> RowGroup:
        """Return the columns from which batches are gathered, given the columns of a decoded row group."""
        if self._rectify is not None:
            stored = stored | self._rectified(self._rectify, stored)
        prepared = {key: values for key, values in stored.items() if not isinstance(key, Label | Reference | Timestamp)}
        labels = [stored[Label(task)].astype(np.int8, copy=False) for task in self._tasks]
        prepared[LABELS] = np.stack(labels, axis=1)
        if self._has_reference:
            prepared[REFERENCES] = np.stack([stored[Reference(task)] for task in self._tasks], axis=1)
        if self._engagements:
            engagements = [stored[Label(label)] == 1 for label in self._engagements]
            prepared[_IS_POSITIVE] = np.any(engagements, axis=0)
        return prepared

    @staticmethod
    def _rectified(config: RectifyLabels, stored: RowGroup) -> RowGroup:
        served = stored[Timestamp(config.served_timestamp_field)]
        impressed = stored[Timestamp(config.impressed_timestamp_field)]
        window = config.label_rectification_window_in_hours
        return {
            key: rectified(stored[key], served, impressed, stored[Timestamp(field)], window)
            for label, field in config.label_to_engaged_timestamp_field.items()
            if (key := Label(label)) in stored
        }


class NegativeSampling:
    """Keeps the positives of a batch and a sample of its negatives.

    Implements Sampling for row groups that a Preparation has prepared.
    """

    columns = (_IS_POSITIVE,)

    def __init__(self, config: DownsampleNegatives, num_tasks: int, key_path: str) -> None:
        """Check the number of tasks.

        Args:
          config: the sampling configuration.
          num_tasks: number of tasks of the data set.
          key_path: path of the data set within the whole configuration, for messages.

        Raises:
          ConfigError: num_engagements is not the number of tasks.
        """
        if config.num_engagements != num_tasks:
            raise ConfigError(
                f"{key_path}.preprocess.downsample_negatives.num_engagements is {config.num_engagements}, but "
                f"{key_path}.tasks has {num_tasks} tasks. Make them equal"
            )
        self.rows_read_per_kept = config.batch_multiplier

    def choose(
        self, stored: RowGroup, keep: int, rng: np.random.Generator
    ) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
        """Choose up to `keep` of the rows; see Sampling.choose()."""
        return downsampled(stored[_IS_POSITIVE], keep, self.rows_read_per_kept, rng)
