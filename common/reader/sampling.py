"""Defines the interface through which a reader samples rows, for example to drop most negatives."""

from collections.abc import Hashable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from common.reader.parquet import RowGroup


class Sampling(Protocol):
    """Chooses rows by a few of their columns, before the other columns are gathered."""

    @property
    def rows_read_per_kept(self) -> int:
        """Number of rows read per row of a batch."""

    @property
    def columns(self) -> tuple[Hashable, ...]:
        """Keys of the columns that choose() needs."""

    def choose(
        self, stored: RowGroup, keep: int, rng: np.random.Generator
    ) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
        """Choose among the next rows of a lane.

        Args:
          stored: the values of `columns`, each [rows] or [rows, width].
          keep: maximum number of rows to choose.
          rng: generator seeded by the seed, epoch, lane and cursor.

        Returns:
          Indices of the chosen rows in ascending order, and the weight of each.
        """
