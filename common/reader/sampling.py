"""Leaving out rows that are read, such as most of the negatives: what a reader asks for."""

from collections.abc import Hashable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from common.reader.parquet import RowGroup


class Sampling(Protocol):
    """Chooses among the rows that are read, before anything but a few columns of them is looked at."""

    @property
    def rows_read_per_kept(self) -> int:
        """Rows that are read for each that a batch has room for."""

    @property
    def columns(self) -> tuple[Hashable, ...]:
        """What choose() looks at."""

    def choose(
        self, stored: RowGroup, keep: int, rng: np.random.Generator
    ) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
        """Chooses among a lane's next rows.

        Args:
          stored: `columns`, [rows] or [rows, width].
          keep: the most rows to choose.
          rng: a function of seed, epoch, lane and position.

        Returns:
          ascending positions of the chosen rows, and the weight of each.
        """
