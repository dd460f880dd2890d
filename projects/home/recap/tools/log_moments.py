"""Computes means and standard deviations of the logarithms of continuous features in one pass over the data."""

import logging

import numpy as np
import tqdm
from numpy.typing import NDArray

from common.features.encoder import CONTINUOUS, FeatureEncoder
from projects.home.recap.config import RecapConfig
from projects.home.recap.data.dataset import RecapDataset
from projects.home.recap.model.log_statistics import LogStatistics
from projects.home.recap.project import PROJECT

logger = logging.getLogger(__name__)


class Moments:
    """Mean and variance of vectors that arrive in groups (Chan, Golub, LeVeque 1983, equation 2.1), in float64."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: NDArray[np.float64] | float = 0.0
        self._squares: NDArray[np.float64] | float = 0.0

    def add(self, vectors: NDArray[np.float64]) -> None:
        """Add at least one vector, [count, values]."""
        mean = vectors.mean(axis=0)
        squares = np.square(vectors - mean).sum(axis=0)
        total = self.count + len(vectors)
        delta = mean - self.mean
        self._squares = self._squares + squares + np.square(delta) * (self.count * len(vectors) / total)
        self.mean = self.mean + delta * (len(vectors) / total)
        self.count = total

    @property
    def std(self) -> NDArray[np.float64]:
        """The standard deviation of each value, in the whole population."""
        return np.sqrt(np.asarray(self._squares) / self.count)


def log_statistics(config: RecapConfig) -> LogStatistics:
    """Return the statistics of the continuous features that the model transforms, over all rows of the training data.

    Raises:
      ConfigError: the configuration does not match the data.
      DataError: the data is invalid.
    """
    config = PROJECT.complete_config(config)
    encoder = None if config.features is None else FeatureEncoder.open(config.features)
    dataset = RecapDataset.open(
        config.train_data, list(config.model.tasks), "train_data", evaluation=False, encoder=encoder
    )
    key = "continuous"
    names = [f"continuous[{index}]" for index in range(dataset.widths.continuous)]
    chosen = list(range(len(names)))
    if (layout := dataset.layout) is not None:
        key, names = CONTINUOUS, list(layout.plain)
        chosen = [index for index, edges in enumerate(layout.edges) if edges is None]
    table, moments = dataset.table, Moments()
    logger.info("%s: statistics of %d feature(s) in %s rows", table.inputs, len(chosen), f"{table.num_rows:,}")
    groups = tqdm.tqdm(range(len(table.rows_per_group)), "statistics", unit="row group", disable=None, leave=False)
    for group in groups:
        numbers = np.asarray(table.decode(group)[key])[:, chosen].astype(np.float64)
        numbers = np.nan_to_num(numbers, nan=0.0, posinf=0.0, neginf=0.0)  # as in the model
        moments.add(np.sign(numbers) * np.log1p(np.abs(numbers)))
    mean, std = np.asarray(moments.mean).tolist(), moments.std.tolist()
    return LogStatistics(features=names, mean=mean, std=std)
