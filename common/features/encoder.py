"""Encodes the columns of features as the arrays of their layout, while row groups are decoded."""

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from common.features.category import Category, Encoding, encoding_of, is_text
from common.features.config import (
    BooleanFeature,
    CategoriesFeature,
    CategoryFeature,
    EmbeddingFeature,
    Feature,
    NumberFeature,
    NumbersFeature,
    TimestampFeature,
)
from common.features.kinds.categories import CategoriesEncoder, CategoryEncoder
from common.features.kinds.kind import BadValueError, KindEncoder, Outputs, Places
from common.features.kinds.numbers import BooleanEncoder, EmbeddingEncoder, NumberEncoder, NumbersEncoder, NumberSlot
from common.features.kinds.timestamps import AgeEncoder, TimestampEncoder
from common.features.layout import build_layout
from common.features.numeric import value_type
from common.features.time import Zone
from common.features.vocabulary import Vocabulary, read_vocabularies
from common.reader.column import Column, bad_value
from common.reader.files import DataError
from common.reader.parquet_file import no_column
from common.reader.vectors import is_list

CONTINUOUS, BINARY, IDS = "features.continuous", "features.binary", "features.ids"
"""Keys of the encoded arrays in a row group."""


def embedding_key(name: str) -> str:
    """Return the key of the vectors of an embedding feature in a row group."""
    return f"features.embedding.{name}"


class FeatureEncoder:
    """Encodes features. It implements common.reader.encoder.Encoder.

    Attributes:
      features: the features by name.
      vocabularies: their vocabularies, by path in the configuration.
      layout: the layout of the arrays that encode() returns.
    """

    def __init__(self, features: Mapping[str, Feature], vocabularies: Mapping[str, Vocabulary]) -> None:
        """Prepare to encode.

        Args:
          features: features by name, whose lengths are not null. If `missing` of a number is null, a missing number
            becomes NaN.
          vocabularies: vocabularies by their paths in the configuration.
        """
        self.features = dict(features)
        self.vocabularies = dict(vocabularies)
        self.layout = build_layout(features, vocabularies)
        self._encodings: dict[str, Encoding] = {}
        for name, feature in features.items():
            if isinstance(feature, CategoryFeature | CategoriesFeature):
                vocabulary = None if feature.vocabulary is None else vocabularies[feature.vocabulary]
                self._encodings.setdefault(feature.table or name, encoding_of(feature, vocabulary))
        places = Places.of(self.layout)
        self._encoders = [_kind_encoder(name, feature, places, self._encodings) for name, feature in features.items()]

    @classmethod
    def open(cls, features: Mapping[str, Feature]) -> Self:
        """Read the vocabularies of features, whose lengths are not null, and prepare to encode.

        Raises:
          DataError: a vocabulary cannot be used.
        """
        return cls(features, read_vocabularies(features))

    @property
    def columns(self) -> list[str]:
        """Names of the columns to read."""
        return list(dict.fromkeys(column for encoder in self._encoders for column in encoder.columns))

    @property
    def bytes_per_row(self) -> int:
        """Bytes of an encoded row."""
        layout = self.layout
        numbers = len(layout.continuous) + layout.num_ids + sum(layout.embeddings.values())
        return 4 * numbers + len(layout.binary)

    def accepted_values(self, table: str) -> Category | None:
        """Return the values that a table takes; None for hash_buckets as long as check() has found none."""
        return self._encodings[table].accepts

    def check(self, schema: pa.Schema) -> list[str]:
        """Check the columns of a file.

        Returns:
          Names of the columns of strings and of lists of strings.

        Raises:
          ValueError: a column is missing, occurs more than once, or has a type that cannot be encoded.
        """
        for name in self.columns:
            if schema.get_field_index(name) < 0:
                raise ValueError(no_column(name, schema.names))
        for encoder in self._encoders:
            encoder.check(schema)
        return [name for name in self.columns if _has_text(schema.field(name).type)]

    def encode(self, table: pa.Table, location: str) -> dict[str, NDArray[Any]]:
        """Return the encoded columns of a row group.

        Returns:
          CONTINUOUS, float32 [rows, values]; BINARY, uint8 [rows, values]; IDS, int32 [rows, ids]; and for each
          embedding its embedding_key(), float32 [rows, length].

        Raises:
          DataError: a value cannot be encoded.
        """
        layout, rows = self.layout, table.num_rows
        out = Outputs(
            np.empty((rows, len(layout.continuous)), np.float32),
            np.empty((rows, len(layout.binary)), np.uint8),
            np.empty((rows, layout.num_ids), np.int32),
            {name: np.empty((rows, length), np.float32) for name, length in layout.embeddings.items()},
        )
        try:
            for encoder in self._encoders:
                encoder.encode(table, out)
        except BadValueError as error:
            raise DataError(bad_value(location, Column(error.column), error.row, error.problem)) from None
        embeddings = {embedding_key(name): values for name, values in out.embeddings.items()}
        return {CONTINUOUS: out.continuous, BINARY: out.binary, IDS: out.ids, **embeddings}


def _kind_encoder(name: str, feature: Feature, places: Places, encodings: Mapping[str, Encoding]) -> KindEncoder:
    """Return the encoder of a feature. `encodings` are those of categories, by table."""
    column = feature.column or name
    if isinstance(feature, NumberFeature):
        return NumberEncoder(column, NumberSlot.of(name, places, feature.missing, indicator=feature.indicator))
    if isinstance(feature, NumbersFeature):
        length = feature.length or 0
        missing = feature.missing if isinstance(feature.missing, list) else [feature.missing] * length
        slots = [
            NumberSlot.of(f"{name}[{index}]", places, missing[index], indicator=feature.indicator)
            for index in range(length)
        ]
        return NumbersEncoder(column, slots)
    if isinstance(feature, BooleanFeature):
        return BooleanEncoder(column, places.binary[name], feature.missing, feature.indicator)
    if isinstance(feature, EmbeddingFeature):
        return EmbeddingEncoder(column, name, feature.length or 0)
    if isinstance(feature, TimestampFeature):
        age = None if feature.age is None else AgeEncoder.of(feature.age, f"{name}.age", places)
        hour, day = (places.lookups.get(f"{name}.{part}") for part in ("hour_of_day", "day_of_week"))
        return TimestampEncoder(column, feature.unit, Zone(feature.time_zone), hour, day, age)
    lookup = places.lookups[name]
    if isinstance(feature, CategoryFeature):
        return CategoryEncoder(column, lookup, encodings[lookup.table])
    return CategoriesEncoder(column, lookup, encodings[lookup.table])


def _has_text(kind: pa.DataType) -> bool:
    kind = value_type(kind)
    return is_text(kind) or (is_list(kind) and is_text(value_type(kind.value_type)))
