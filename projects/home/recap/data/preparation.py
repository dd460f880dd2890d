"""Which columns are read for a configuration beside the features, and what a row group's columns become before batches
are gathered from them. The formulas are in preprocess.py.
"""

from collections.abc import Collection, Mapping, Sequence

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

LABELS, WEIGHT, REFERENCES, EXTRACTED = "labels", "weight", "references", "extracted "
"""Of what batches are gathered from beside the features: [rows, tasks], [rows], [rows, tasks]; a prefix of [rows]."""

# Of what a row group is decoded to, behind a prefix.
_LABEL, _REFERENCE, _TIME = "label ", "reference ", "time "
_IS_POSITIVE = "is positive"


class ColumnsByName:
    """Columns of the files, and values of features that have names of their own."""

    def __init__(self, config: RecapDataConfig, features: Mapping[str, Feature], path: str) -> None:
        """Args:
        config: the data set.
        features: that are read, by our names.
        path: of `config` within the whole configuration, for messages.

        Raises:
          ConfigError: a value to extract is not there.
        """
        extract = config.preprocess.extract_features if config.preprocess is not None else None
        self._extracted = {row.name: row for row in extract.extract_feature_table} if extract is not None else {}
        self._features = features
        self._place = f"{path}.preprocess.extract_features.extract_feature_table"
        for row in self._extracted.values():
            if row.source_tensor not in features:
                found = f"source_tensor '{row.source_tensor}'; features that are read: {', '.join(features)}"
                raise ConfigError(f"{self._place}: '{row.name}' has {found}")
            if row.index >= (width := features[row.source_tensor].width):
                found = f"index {row.index}, but '{row.source_tensor}' has {width} values, counted from 0"
                raise ConfigError(f"{self._place}: '{row.name}' has {found}")

    def column(self, name: str, dtype: torch.dtype = torch.float32, values: Values | None = None) -> Column:
        """The column of a name. A value of a feature may be stored as a float where integers are expected."""
        if name not in self._extracted:
            return Column(name, dtype, values=values)
        return self._value(self._extracted[name], dtype if dtype.is_floating_point else torch.float64, values)

    def extracted(self) -> dict[str, Column]:
        """All values that have names of their own, in the type in which the model computes with their feature."""
        rows = self._extracted.values()
        return {row.name: self._value(row, self._features[row.source_tensor].dtype, None) for row in rows}

    def check_unambiguous(self, column_names: Collection[str], inputs: str) -> None:
        """Raises ConfigError where a value has the name of a column of the files."""
        for name in self._extracted:
            if name in column_names:
                raise ConfigError(f"{self._place}: the name '{name}' is also a column of {inputs}; give it another")

    def _value(self, row: ExtractFeaturesRow, dtype: torch.dtype, values: Values | None) -> Column:
        feature = self._features[row.source_tensor]
        return Column(feature.column, dtype, feature.width, position=row.index, values=values)


class Preparation:
    """Rectifies labels, tells positives, and stacks what has a column per task, so that a row of a batch is gathered
    once for all tasks."""

    def __init__(self, config: RecapDataConfig, tasks: Sequence[str], named: ColumnsByName, *, reference: bool) -> None:
        """Args:
        config: the data set.
        tasks: of batches, in their order.
        named: columns by name.
        reference: whether batches have the probabilities that labels were drawn from.
        """
        preprocess = config.preprocess or Preprocess()
        downsample = preprocess.downsample_negatives
        self._tasks = tasks
        self._engagements = [] if downsample is None else downsample.engagements_list or list(config.tasks)
        labels = dict.fromkeys([*tasks, *self._engagements])
        self.columns = {_LABEL + label: named.column(label, torch.int8, "label") for label in labels}
        """What is read, by keys of its own."""
        if config.weight_column is not None:
            self.columns[WEIGHT] = named.column(config.weight_column, values="weight")
        prefix = config.reference_probability_prefix if reference else None
        self._has_reference = prefix is not None
        if prefix is not None:
            self.columns |= {_REFERENCE + task: named.column(prefix + task, values="probability") for task in tasks}
        self.columns |= {EXTRACTED + name: column for name, column in named.extracted().items()}
        self._rectify = preprocess.rectify_labels
        if self._rectify is not None:
            fields = [self._rectify.served_timestamp_field, self._rectify.impressed_timestamp_field]
            engaged_at = self._rectify.label_to_engaged_timestamp_field
            fields += [field for label, field in engaged_at.items() if label in labels]
            self.columns |= {_TIME + field: named.column(field, torch.int64) for field in fields}

    def __call__(self, stored: RowGroup) -> RowGroup:
        """Makes of the columns of a row group those that batches are gathered from."""
        if self._rectify is not None:
            stored = stored | self._rectified(self._rectify, stored)
        prepared = {
            key: values for key, values in stored.items() if not str(key).startswith((_LABEL, _REFERENCE, _TIME))
        }
        prepared[LABELS] = np.stack([stored[_LABEL + task] for task in self._tasks], axis=1)
        if self._has_reference:
            prepared[REFERENCES] = np.stack([stored[_REFERENCE + task] for task in self._tasks], axis=1)
        if self._engagements:
            engagements = [stored[_LABEL + label] == 1 for label in self._engagements]
            prepared[_IS_POSITIVE] = np.any(engagements, axis=0)
        return prepared

    @staticmethod
    def _rectified(config: RectifyLabels, stored: RowGroup) -> RowGroup:
        served = stored[_TIME + config.served_timestamp_field]
        impressed = stored[_TIME + config.impressed_timestamp_field]
        window = config.label_rectification_window_in_hours
        return {
            key: rectified(stored[key], served, impressed, stored[_TIME + field], window)
            for label, field in config.label_to_engaged_timestamp_field.items()
            if (key := _LABEL + label) in stored
        }


class NegativeSampling:
    """Keeps a batch's positives and some of its negatives: a Sampling of rows that a Preparation has prepared."""

    columns = (_IS_POSITIVE,)

    def __init__(self, config: DownsampleNegatives, num_tasks: int, path: str) -> None:
        """Args:
        config: what to keep.
        num_tasks: of the data set.
        path: of the data set's configuration, for messages.

        Raises:
          ConfigError: there are not as many tasks as the configuration says.
        """
        if config.num_engagements != num_tasks:
            raise ConfigError(
                f"{path}.preprocess.downsample_negatives.num_engagements: {config.num_engagements} given, but "
                f"{path}.tasks has {num_tasks}"
            )
        self.rows_read_per_kept = config.batch_multiplier

    def choose(
        self, stored: RowGroup, keep: int, rng: np.random.Generator
    ) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
        """As Sampling.choose() says."""
        return downsampled(stored[_IS_POSITIVE], keep, self.rows_read_per_kept, rng)
