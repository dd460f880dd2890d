"""Defines the layout of encoded features: which values and rows of tables a row of the files becomes.

The encoder fills arrays of this layout, and the model reads them. The order is that of the configuration.
"""

import collections
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from common.errors import ConfigError
from common.features.config import (
    FIRST_VALUE_ROW,
    Age,
    BooleanFeature,
    CategoriesFeature,
    CategoryFeature,
    EmbeddingFeature,
    Feature,
    NumberFeature,
    NumbersFeature,
    TimestampFeature,
    default_embedding_dim,
)
from common.features.vocabulary import Vocabulary

NO_ROW = -1
"""Id in a place of a list that has no value."""


@dataclass(frozen=True, eq=False)
class EmbeddingTable:
    """An embedding table of categories.

    Attributes:
      name: name of the table.
      num_rows: number of rows, including those of missing and unknown values.
      dim: number of values per embedding.
      replacement: probability of replacing each row by that of unknown values in training, float32 [num_rows].
    """

    name: str
    num_rows: int
    dim: int
    replacement: NDArray[np.float32]


@dataclass(frozen=True)
class Lookup:
    """The ids of a feature.

    Attributes:
      feature: name of the feature, followed by .hour_of_day or .day_of_week for these parts of a timestamp.
      table: name of the table.
      begin: its first column among the ids.
      length: maximum number of values per row; 1 for a category.
      num_hashes: ids per value, in adjacent columns; the embedding of a value is the sum of their rows.
      pooling: how the embeddings of the values are combined; None for a category.
    """

    feature: str
    table: str
    begin: int
    length: int = 1
    num_hashes: int = 1
    pooling: Literal["mean", "sum"] | None = None

    @property
    def end(self) -> int:
        """The column after its last one."""
        return self.begin + self.length * self.num_hashes


@dataclass(frozen=True)
class FeatureLayout:
    """The layout of all features.

    Attributes:
      continuous: names of the values of continuous: a feature, feature[i] for a position of a vector, feature.age.
      edges: edges of the buckets of each value of continuous; None for a value without buckets.
      binary: names of the values of binary: a feature, or the name of a number followed by .missing.
      lookups: the ids of each feature.
      tables: the embedding tables, in the order of their first lookup.
      embeddings: lengths of the vectors that are parts of their own, by feature.
    """

    continuous: tuple[str, ...]
    edges: tuple[tuple[float, ...] | None, ...]
    binary: tuple[str, ...]
    lookups: tuple[Lookup, ...]
    tables: tuple[EmbeddingTable, ...]
    embeddings: Mapping[str, int]

    @property
    def plain(self) -> tuple[str, ...]:
        """Names of the values of continuous without buckets."""
        return tuple(name for name, edges in zip(self.continuous, self.edges, strict=True) if edges is None)

    @property
    def num_ids(self) -> int:
        """Number of ids per row."""
        return max((lookup.end for lookup in self.lookups), default=0)


HOURS, DAYS = 24, 7
"""Number of values of the hour of the day and of the day of the week, of which Monday is the first."""

# Occurrences assumed for each value of a table without counts.
_USUAL_COUNT = 25


def build_layout(features: Mapping[str, Feature], vocabularies: Mapping[str, Vocabulary]) -> FeatureLayout:
    """Return the layout of features.

    Args:
      features: features by name, whose lengths are not null.
      vocabularies: vocabularies by their paths in the configuration.

    Raises:
      ConfigError: a feature has the name of a position of another one.
    """
    builder = _Builder(vocabularies)
    for name, feature in features.items():
        builder.add(name, feature)
    return builder.layout()


@dataclass
class _Builder:
    vocabularies: Mapping[str, Vocabulary]
    continuous: list[str] = field(default_factory=list)
    edges: list[tuple[float, ...] | None] = field(default_factory=list)
    binary: list[str] = field(default_factory=list)
    lookups: list[Lookup] = field(default_factory=list)
    tables: dict[str, EmbeddingTable] = field(default_factory=dict)
    embeddings: dict[str, int] = field(default_factory=dict)

    def layout(self) -> FeatureLayout:
        # The configuration is checked before lengths are known that the data decides.
        for names in (self.continuous, self.binary):
            if twice := [name for name, count in collections.Counter(names).items() if count > 1]:
                raise ConfigError(f"features: {twice[0]} is both a feature and a part of another one. Rename it")
        return FeatureLayout(
            tuple(self.continuous),
            tuple(self.edges),
            tuple(self.binary),
            tuple(self.lookups),
            tuple(self.tables.values()),
            self.embeddings,
        )

    def add(self, name: str, feature: Feature) -> None:
        if isinstance(feature, NumberFeature):
            self._add_number(name, feature.edges, feature.indicator)
        elif isinstance(feature, NumbersFeature):
            for position in range(feature.length or 0):
                edges = None if feature.edges is None else feature.edges[position]
                self._add_number(f"{name}[{position}]", edges, feature.indicator)
        elif isinstance(feature, BooleanFeature):
            self._add_boolean(name, feature)
        elif isinstance(feature, TimestampFeature):
            self._add_timestamp(name, feature)
        elif isinstance(feature, EmbeddingFeature):
            self.embeddings[name] = feature.length or 0
        else:
            self._add_categories(name, feature)

    def _add_number(self, name: str, edges: list[float] | None, indicator: bool) -> None:
        self.continuous.append(name)
        self.edges.append(None if edges is None else tuple(edges))
        if indicator:
            self.binary.append(f"{name}.missing")

    def _add_boolean(self, name: str, feature: BooleanFeature) -> None:
        self.binary.append(name)
        if feature.indicator:
            self.binary.append(f"{name}.missing")

    def _add_timestamp(self, name: str, feature: TimestampFeature) -> None:
        parts = {"hour_of_day": (feature.hour_of_day, HOURS), "day_of_week": (feature.day_of_week, DAYS)}
        for part, (is_used, number) in parts.items():
            if is_used:
                num_rows = FIRST_VALUE_ROW + number
                table = EmbeddingTable(
                    f"{name}.{part}", num_rows, default_embedding_dim(num_rows), np.zeros(num_rows, np.float32)
                )
                self._add_lookup(Lookup(f"{name}.{part}", table.name, self._end), table)
        if isinstance(age := feature.age, Age):
            self._add_number(f"{name}.age", age.edges, age.indicator)

    def _add_categories(self, name: str, feature: CategoryFeature | CategoriesFeature) -> None:
        vocabulary = None if feature.vocabulary is None else self.vocabularies[feature.vocabulary]
        number = len(vocabulary) if vocabulary is not None else feature.num_values or feature.hash_buckets or 0
        num_rows = FIRST_VALUE_ROW + number
        replacement = np.zeros(num_rows, np.float64)
        if pseudo_count := feature.unknown_pseudo_count:
            counts = None if vocabulary is None else vocabulary.counts
            replacement[FIRST_VALUE_ROW:] = pseudo_count / (pseudo_count + (_USUAL_COUNT if counts is None else counts))
        table = EmbeddingTable(
            feature.table or name,
            num_rows,
            feature.embedding_dim or default_embedding_dim(num_rows),
            replacement.astype(np.float32),
        )
        lookup = Lookup(name, table.name, self._end, num_hashes=feature.num_hashes)
        if isinstance(feature, CategoriesFeature):
            lookup = Lookup(
                name, table.name, self._end, feature.max_length, feature.num_hashes, pooling=feature.pooling
            )
        self._add_lookup(lookup, table)

    def _add_lookup(self, lookup: Lookup, table: EmbeddingTable) -> None:
        self.lookups.append(lookup)
        self.tables.setdefault(table.name, table)

    @property
    def _end(self) -> int:
        return self.lookups[-1].end if self.lookups else 0
