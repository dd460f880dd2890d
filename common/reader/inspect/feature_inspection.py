"""Counts what the encoding of configured features makes of the values in Parquet files.

Holds the feature columns of one row group in memory at a time, and at most MOST_DISTINCT hashes per feature.
feature_report.py formats the result.
"""

import collections
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from common.features.category import Category, HashEncoding, Rows, rows_of
from common.features.config import (
    MISSING_ROW,
    UNKNOWN_ROW,
    BooleanFeature,
    CategoriesFeature,
    CategoryFeature,
    EmbeddingFeature,
    Feature,
    NumberFeature,
    NumbersFeature,
    TimestampFeature,
)
from common.features.encoder import BINARY, IDS, FeatureEncoder
from common.features.hashing import hash_integers, hash_strings
from common.features.layout import NO_ROW, Lookup, build_layout
from common.features.numeric import as_lists
from common.features.statistics import complete_features
from common.features.vocabulary import read_vocabularies
from common.reader.files import DataError, Files
from common.reader.inspect.inspection import Findings
from common.reader.parquet import ParquetTable
from common.reader.vectors import is_list

MOST_DISTINCT = 2**20
"""Number of distinct values of a feature that are compared; collisions of others are not counted."""

_EXAMPLES = 3


@dataclass
class Collisions:
    """Values that are hashed, and whether they share a bucket.

    Attributes:
      num_buckets: number of buckets.
      hashes: hashes of the distinct values, in ascending order, at most MOST_DISTINCT.
      buckets: bucket of each of them; with two hashes, the combination of the two buckets.
      are_all: whether `hashes` has all distinct values.
    """

    num_buckets: int
    hashes: NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))
    buckets: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    are_all: bool = True

    @property
    def num_shared(self) -> int:
        """Number of distinct values whose bucket another value has too."""
        _, counts = np.unique(self.buckets, return_counts=True)
        return int(counts[counts > 1].sum())

    def add(self, hashes: NDArray[np.uint64], buckets: NDArray[np.int64]) -> None:
        """Add values, which may repeat."""
        places = np.searchsorted(self.hashes, hashes)
        is_new = np.append(self.hashes, np.uint64(0))[places] != hashes
        is_new |= places == len(self.hashes)
        if not is_new.any():
            return
        hashes, first = np.unique(hashes[is_new], return_index=True)
        buckets = buckets[is_new][first]
        room = MOST_DISTINCT - len(self.hashes)
        self.are_all &= len(hashes) <= room
        order = np.argsort(merged := np.concatenate([self.hashes, hashes[:room]]))
        self.hashes = merged[order]
        self.buckets = np.concatenate([self.buckets, buckets[:room]])[order]


@dataclass
class FeatureCounts:
    """The values of a feature in all files.

    Attributes:
      feature: configuration of the feature.
      values: number of values; for lists, of those that are used.
      missing: number of missing values: null, NaN and infinite.
      unknown: number of values that are unknown to a vocabulary or num_values; None for other features.
      examples: some different unknown values.
      collisions: the distinct values of a feature with hash_buckets; None for other features.
      lists: number of lists that are not null.
      longest: number of values of the longest list.
      cut: number of lists that are longer than max_length.
    """

    feature: Feature
    values: int = 0
    missing: int = 0
    unknown: int | None = None
    examples: list[str] = field(default_factory=list)
    collisions: Collisions | None = None
    lists: int = 0
    longest: int = 0
    cut: int = 0


@dataclass
class FeatureInspection:
    """The result of inspecting the features of a set of files.

    Attributes:
      files: the inspected files.
      num_rows: number of rows that were read.
      features: counts of each feature, by name.
      errors: problems that stop a run.
    """

    files: Files
    num_rows: int = 0
    features: dict[str, FeatureCounts] = field(default_factory=dict)
    errors: Findings = field(default_factory=Findings)


def inspect_features(
    files: Files, features: Mapping[str, Feature], progress: Callable[[int], object] | None = None
) -> FeatureInspection:
    """Read the columns of features in all files. A problem in a row group becomes an error.

    Args:
      files: the files to inspect.
      features: features by name.
      progress: called after each row group with its number of rows.

    Raises:
      ConfigError: a feature has the name of a position of another one.
    """
    inspection = FeatureInspection(files)
    try:
        completed = complete_features(_without_statistics(features), files)
        vocabularies = read_vocabularies(features)
        build_layout(completed, vocabularies)  # checks the names
        counter = _Counter(FeatureEncoder(_counted(completed), vocabularies), features)
        table = ParquetTable(files, {}, encoder=counter)
    except DataError as error:
        inspection.errors.add(str(error))
        return inspection
    inspection.features = counter.counts
    for group, num_rows in enumerate(table.rows_per_group):
        try:
            table.decode(group)
            inspection.num_rows += int(num_rows)
        except DataError as error:
            inspection.errors.add(str(error))
        if progress is not None:
            progress(int(num_rows))
    return inspection


def _without_statistics(features: Mapping[str, Feature]) -> dict[str, Feature]:
    """Return features that need no statistics of the files."""
    return {
        name: _with_numbers(feature, {"missing": 0.0, "buckets": None, "edges": None})
        for name, feature in features.items()
    }


def _counted(features: Mapping[str, Feature]) -> dict[str, Feature]:
    """Return features that count missing values with indicators, by their positions in the configuration.

    Otherwise, the name of an indicator could be that of another feature.
    """
    counted: dict[str, Feature] = {}
    for position, (name, feature) in enumerate(features.items()):
        update: dict[str, Any] = {"column": feature.column or name}
        if isinstance(feature, CategoryFeature | CategoriesFeature):
            update["table"] = feature.table or name
        elif isinstance(feature, BooleanFeature):
            update["indicator"] = True
        counted[str(position)] = _with_numbers(feature.model_copy(update=update), {"indicator": True})
    return counted


def _with_numbers(feature: Feature, update: Mapping[str, Any]) -> Feature:
    """Return a feature with other settings of its numbers, if it has any."""
    if isinstance(feature, NumberFeature | NumbersFeature):
        return feature.model_copy(update=update)
    if isinstance(feature, TimestampFeature) and feature.age is not None:
        return feature.model_copy(update={"age": feature.age.model_copy(update=update)})
    return feature


class _Counter:
    """Encodes row groups, counts the values, and drops them. It implements common.reader.encoder.Encoder."""

    bytes_per_row = 0

    def __init__(self, encoder: FeatureEncoder, features: Mapping[str, Feature]) -> None:
        self._encoder = encoder
        self.columns = encoder.columns
        self.counts = {name: FeatureCounts(feature) for name, feature in features.items()}
        self._lookups = {lookup.feature: lookup for lookup in encoder.layout.lookups}
        self._indicators: dict[str, list[int]] = collections.defaultdict(list)
        for column, name in enumerate(encoder.layout.binary):
            if name.endswith(".missing"):  # such as 0.missing, 1[2].missing and 3.age.missing
                self._indicators[re.split(r"[.[]", name)[0]].append(column)

    def check(self, schema: pa.Schema) -> list[str]:
        return self._encoder.check(schema)

    def encode(self, table: pa.Table, location: str) -> dict[str, NDArray[Any]]:
        encoded = self._encoder.encode(table, location)
        for (name, feature), counts in zip(self._encoder.features.items(), self.counts.values(), strict=True):
            column = feature.column or name
            if isinstance(feature, CategoryFeature | CategoriesFeature):
                chunks = [as_lists(chunk, table.schema.field(column)) for chunk in table.column(column).chunks]
                _count_categories(chunks, feature, self._lookups[name], encoded[IDS], counts)
            elif isinstance(feature, EmbeddingFeature):
                counts.values += table.num_rows
                counts.missing += table.column(column).null_count
            else:
                self._count_numbers(name, table.num_rows, encoded, counts)
        return {}

    def _count_numbers(
        self, name: str, num_rows: int, encoded: Mapping[str, NDArray[Any]], counts: FeatureCounts
    ) -> None:
        """Count numbers and booleans by their indicators, and points in time by one of their parts."""
        for part in ("hour_of_day", "day_of_week"):
            if (lookup := self._lookups.get(f"{name}.{part}")) is not None:
                counts.values += num_rows
                counts.missing += int(np.count_nonzero(encoded[IDS][:, lookup.begin] == MISSING_ROW))
                return
        indicators = encoded[BINARY][:, self._indicators[name]]
        counts.values += indicators.size
        counts.missing += int(np.count_nonzero(indicators))


def _count_categories(
    chunks: list[pa.Array],
    feature: CategoryFeature | CategoriesFeature,
    lookup: Lookup,
    ids: NDArray[np.int32],
    counts: FeatureCounts,
) -> None:
    rows = ids[:, lookup.begin : lookup.end : lookup.num_hashes]
    counts.values += int(np.count_nonzero(rows != NO_ROW))
    counts.missing += int(np.count_nonzero(rows == MISSING_ROW))
    if isinstance(feature, CategoriesFeature):
        _count_lists(chunks, feature.max_length, counts)
    if feature.hash_buckets is not None:
        counts.collisions = counts.collisions or Collisions(feature.hash_buckets)
        recorder = _Recorder(HashEncoding(feature.hash_buckets, feature.num_hashes), counts.collisions)
        for values in _known_values(chunks):
            rows_of(values, recorder)
        return
    is_unknown = rows == UNKNOWN_ROW
    counts.unknown = (counts.unknown or 0) + int(np.count_nonzero(is_unknown))
    if len(counts.examples) < _EXAMPLES and is_unknown.any():
        _add_examples(chunks, is_unknown, lookup, counts)


def _count_lists(chunks: list[pa.Array], max_length: int, counts: FeatureCounts) -> None:
    for chunk in chunks:
        if is_list(chunk.type):
            lengths = pc.list_value_length(chunk).drop_null().to_numpy()
            counts.lists += len(lengths)
            counts.longest = max(counts.longest, int(lengths.max(initial=0)))
            counts.cut += int(np.count_nonzero(lengths > max_length))


def _known_values(chunks: list[pa.Array]) -> Iterator[pa.Array]:
    """Yield the values of a column, or of its lists, that are not missing. Those of dictionaries are distinct."""
    for chunk in chunks:
        values = chunk.flatten() if is_list(chunk.type) else chunk
        if pa.types.is_dictionary(values.type):
            values = values.dictionary
        values = values.drop_null()
        if pa.types.is_floating(values.type):
            values = values.filter(pc.invert(pc.is_nan(values)))
        if len(values):
            yield values


@dataclass
class _Recorder:
    """Encodes values as `encoding` does, and adds them to `collisions`."""

    encoding: HashEncoding
    collisions: Collisions
    accepts: Category | None = None
    reason: str = ""

    @property
    def num_hashes(self) -> int:
        return self.encoding.num_hashes

    def rows_of_strings(self, values: pa.Array) -> Rows:
        return self._added(hash_strings(values), self.encoding.rows_of_strings(values))

    def rows_of_integers(self, values: NDArray[np.int64], is_other: NDArray[np.bool_] | None) -> Rows:
        return self._added(hash_integers(values), self.encoding.rows_of_integers(values, is_other))

    def _added(self, hashes: NDArray[np.uint64], rows: Rows) -> Rows:
        buckets = rows[:, 0].astype(np.int64)
        if self.num_hashes == 2:
            buckets += rows[:, 1].astype(np.int64) << 32
        self.collisions.add(hashes, buckets)
        return rows


def _add_examples(chunks: list[pa.Array], is_unknown: NDArray[np.bool_], lookup: Lookup, counts: FeatureCounts) -> None:
    begins = np.cumsum([0, *map(len, chunks)])
    for row, position in np.argwhere(is_unknown)[: 8 * _EXAMPLES]:
        chunk = int(np.searchsorted(begins, row, "right")) - 1
        try:
            value = chunks[chunk][int(row - begins[chunk])].as_py()
        except UnicodeDecodeError:
            value = "text that is not valid UTF-8"
        if isinstance(value, list):
            value = value[-lookup.length :][position]
        if repr(value) not in counts.examples and len(counts.examples) < _EXAMPLES:
            counts.examples.append(repr(value))
