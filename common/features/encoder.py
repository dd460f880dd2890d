"""Encodes the columns of features as the arrays of their layout, while row groups are decoded."""

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from common.features.category import Encoding, encoding_of, is_text
from common.features.config import CategoriesFeature, CategoryFeature, Feature
from common.features.kinds import BadValueError, Outputs, kind_encoder
from common.features.layout import build_layout
from common.features.numeric import is_list, value_type
from common.features.vocabulary import Vocabulary, read_vocabularies
from common.reader.column import Column, bad_value
from common.reader.files import DataError

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
        encodings: dict[str, Encoding] = {}
        for name, feature in features.items():
            if isinstance(feature, CategoryFeature | CategoriesFeature):
                vocabulary = None if feature.vocabulary is None else vocabularies[feature.vocabulary]
                encodings.setdefault(feature.table or name, encoding_of(feature, vocabulary))
        self._encoders = [kind_encoder(name, feature, self.layout, encodings) for name, feature in features.items()]

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

    def check(self, schema: pa.Schema) -> list[str]:
        """Check the columns of a file.

        Returns:
          Names of the columns of strings and of lists of strings.

        Raises:
          ValueError: a column is missing, occurs more than once, or has a type that cannot be encoded.
        """
        for name in self.columns:
            if schema.get_field_index(name) < 0:
                found = ", ".join(sorted(schema.names)) or "none"
                raise ValueError(f"no column '{name}', or more than one; columns found: {found}")
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


def _has_text(kind: pa.DataType) -> bool:
    kind = value_type(kind)
    return is_text(kind) or (is_list(kind) and is_text(value_type(kind.value_type)))
