"""Defines the layout of encoded features: which values and rows of tables a row of the files becomes.

The encoder fills arrays of this layout, and the model reads them. The order is that of the configuration.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

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
    def num_ids(self) -> int:
        """Number of ids per row."""
        return max((lookup.end for lookup in self.lookups), default=0)
