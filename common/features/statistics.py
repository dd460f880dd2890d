"""Completes the configuration of features with what the training data decides: lengths, means, and edges of buckets.

A run does this for a configuration by hand, and `prepare` for the configuration that it writes.
"""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.features.config import Age, EmbeddingFeature, Feature, NumberFeature, NumbersFeature, TimestampFeature
from common.features.encoder import CONTINUOUS, FeatureEncoder
from common.features.numeric import vector_type
from common.process.progress import Progress
from common.reader.files import READ_ERRORS, DataError, Files
from common.reader.parquet import ParquetTable
from common.reader.parquet_file import open_parquet

logger = logging.getLogger(__name__)

# Numbers of which quantiles are computed, and rows that they come from at most. They take 256 MiB and some copies.
_MAX_SAMPLED_NUMBERS, _MAX_SAMPLED_ROWS = 2**26, 2**20
# The widths of buckets must be finite in float32.
_LARGEST_EDGE = 1e38


def is_complete(features: Mapping[str, Feature]) -> bool:
    """Return whether the configuration of features leaves nothing to the training data."""
    return all(_probe(feature) is None and getattr(feature, "length", 0) is not None for feature in features.values())


def complete_features(features: Mapping[str, Feature], files: Files) -> dict[str, Feature]:
    """Return the features with lengths, values for missing numbers, and edges, where they are null.

    Reads the files only if a number needs it. The result depends only on the features and the files. The mean is that
    of the numbers as float32, computed in float64. Edges come from a sample if there are many rows.

    Args:
      features: features by name.
      files: files of the training data.

    Raises:
      DataError: a file cannot be read, lacks a column, or has one of the wrong type; or vectors have different lengths.
    """
    completed = {name: _with_length(name, feature, files) for name, feature in features.items()}
    # The numbers that need statistics, without anything else, and NaN where they are missing.
    incomplete = {name: probe for name, feature in completed.items() if (probe := _probe(feature)) is not None}
    if not incomplete:
        return completed
    statistics = _Statistics(incomplete, files)
    for name in incomplete:
        completed[name] = statistics.complete(name, completed[name])
    return completed


def _with_length(name: str, feature: Feature, files: Files) -> Feature:
    if not isinstance(feature, NumbersFeature | EmbeddingFeature) or feature.length is not None:
        return feature
    column = feature.column or name
    for path in files.paths:
        try:
            with open_parquet(path) as file:
                schema = file.schema_arrow
        except READ_ERRORS as error:
            raise DataError(f"{path}: cannot read this file as Parquet: {error}") from error
        if schema.get_field_index(column) < 0:
            raise DataError(f"{path}: no column '{column}', or more than one, for the feature {name}")
        try:
            found = vector_type(schema.field(column))
        except ValueError as error:
            raise DataError(f"{path}: column '{column}': {error}") from error
        if found is not None and found[1] is not None:
            return feature.model_copy(update={"length": found[1]})
    raise DataError(
        f"{files.description}: column '{column}' has no fixed length. Set features.{name}.length to the number of "
        "values per row"
    )


def _probe(feature: Feature) -> Feature | None:
    """Return a feature that only reads the numbers that need statistics, with NaN where they are missing."""
    if isinstance(feature, NumberFeature | NumbersFeature):
        needed = feature if _is_incomplete(feature) else None
    elif isinstance(feature, TimestampFeature) and feature.age is not None and _is_incomplete(feature.age):
        age = feature.age.model_copy(update={"missing": None})
        return feature.model_copy(update={"age": age, "hour_of_day": False, "day_of_week": False})
    else:
        needed = None
    return None if needed is None else needed.model_copy(update={"missing": None})


def _is_incomplete(feature: NumberFeature | NumbersFeature | Age) -> bool:
    return feature.missing is None or (feature.buckets is not None and feature.edges is None)


class _Statistics:
    """The means and a sample of numbers in the training data."""

    def __init__(self, features: Mapping[str, Feature], files: Files) -> None:
        encoder = FeatureEncoder(features, {})
        table = ParquetTable(files, {}, encoder=encoder)
        self._columns = {name: index for index, name in enumerate(encoder.layout.continuous)}
        self._inputs = files.description
        num_values = len(self._columns)
        limit = min(_MAX_SAMPLED_ROWS, _MAX_SAMPLED_NUMBERS // num_values)
        sums, counts = np.zeros(num_values), np.zeros(num_values, np.int64)
        sample: list[NDArray[np.float32]] = []
        logger.info(
            "%s: computing means and edges of %d number(s)%s",
            files.description,
            num_values,
            "" if table.num_rows <= limit else f", edges from a sample of {limit / table.num_rows:.1%} of the rows",
        )
        done = 0
        with Progress("reading", table.num_rows) as progress:
            for group in range(len(table.rows_per_group)):
                numbers = table.decode(group)[CONTINUOUS]
                present = ~np.isnan(numbers)
                sums += np.where(present, numbers, 0).sum(axis=0, dtype=np.float64)
                counts += present.sum(axis=0)
                progress.add(len(numbers))
                if table.num_rows > limit:
                    # The rows of the sample are spread evenly over the row groups.
                    begin, done = done, done + len(numbers)
                    size = done * limit // table.num_rows - begin * limit // table.num_rows
                    rows = np.random.default_rng((0, group)).choice(len(numbers), size, replace=False)
                    numbers = numbers[np.sort(rows)]
                sample.append(numbers)
        self._sums, self._counts, self._sample = sums, counts, sample

    def complete(self, name: str, feature: Feature) -> Feature:
        """Return the feature of this name with its means and edges."""
        if isinstance(feature, NumbersFeature):
            names = [f"{name}[{index}]" for index in range(feature.length or 0)]
            update: dict[str, Any] = {}
            if feature.missing is None:
                update["missing"] = [self._mean(each) for each in names]
            if feature.buckets is not None and feature.edges is None:
                update["edges"] = [self._edges(each, feature.buckets) for each in names]
            return feature.model_copy(update=update)
        if isinstance(feature, TimestampFeature):
            assert feature.age is not None
            age = feature.age.model_copy(update=self._update(f"{name}.age", feature.age))
            return feature.model_copy(update={"age": age})
        assert isinstance(feature, NumberFeature)
        return feature.model_copy(update=self._update(name, feature))

    def _update(self, name: str, feature: NumberFeature | Age) -> dict[str, Any]:
        update: dict[str, Any] = {}
        if feature.missing is None:
            update["missing"] = self._mean(name)
        if feature.buckets is not None and feature.edges is None:
            update["edges"] = self._edges(name, feature.buckets)
        return update

    def _mean(self, name: str) -> float:
        column = self._columns[name]
        if self._counts[column] == 0:
            logger.warning("%s: all values of the feature %s are missing; 0 replaces them", self._inputs, name)
            return 0.0
        return float(self._sums[column] / self._counts[column])

    def _edges(self, name: str, buckets: int) -> list[float]:
        column = self._columns[name]
        values = np.concatenate([numbers[:, column] for numbers in self._sample])
        return bucket_edges(values[~np.isnan(values)], buckets)


def bucket_edges(values: NDArray[np.float32], buckets: int) -> list[float]:
    """Return edges of buckets: quantiles of the values and of the distinct values, merged.

    Quantiles of the values alone would give a column that is mostly zero a single bucket for all other values.

    Args:
      values: the numbers that are not missing, [values].
      buckets: maximum number of buckets, >= 2.

    Returns:
      Two to `buckets` + 1 edges, ascending and distinct in float32, all of them values if there are at least two.
    """
    values = values.clip(-_LARGEST_EDGE, _LARGEST_EDGE)
    distinct = np.unique(values)
    if len(distinct) < 2:
        first = float(distinct[0]) if len(distinct) else 0.0
        return [first, first + max(1.0, abs(first))]
    if len(distinct) > buckets + 1:
        of_rows = np.quantile(values, np.linspace(0, 1, buckets // 2 + 2), method="nearest")
        of_rows = np.unique(of_rows)
        # The quantiles of the distinct values fill the rest; both have the smallest and the largest value.
        num_others = buckets + 1 - len(of_rows)
        of_distinct = np.quantile(distinct, np.linspace(0, 1, num_others + 2), method="nearest")
        distinct = np.unique(np.concatenate([of_rows, of_distinct]))
    # The shortest decimal numbers that are the same in float32.
    return [float(str(edge)) for edge in distinct]
