"""Transforms stored features into the backbone's input."""

from collections.abc import Sequence

import torch
from torch import nn

from common.modules.config import BatchNormConfig, LayerNormConfig
from common.modules.layer_norm import LayerNorm
from projects.home.recap.model.config import FeaturizationConfig
from projects.home.recap.model.log_statistics import LogStatistics, read_log_statistics

# Largest magnitude of a number of an embedding. The layer norm of an embedding sums squares of differences; for up to
# 2^24 numbers, the largest length, the sum is at most 2^24 * (2 * 2^50)^2 = 2^126, which float32 can hold. With a power
# of two, the mean of equal numbers is exact, so that they become zeros in every implementation of the norm.
LARGEST_IN_EMBEDDING = 2.0**50

# Largest magnitude of a binary feature, which should be 0 or 1. A backbone may multiply it by another one, and square
# the sum of the products.
_LARGEST_BINARY = 2.0**20


def finite(features: torch.Tensor) -> torch.Tensor:
    """Replace NaN and infinities, which mean that a value is missing, with 0."""
    return torch.nan_to_num(features, nan=0.0, posinf=0.0, neginf=0.0)


def bounded(features: torch.Tensor, largest: float) -> torch.Tensor:
    """Replace NaN and infinities with 0, and clamp other numbers to +-largest."""
    return finite(features).clamp(-largest, largest)


def log1p_abs(features: torch.Tensor) -> torch.Tensor:
    """Return sign(x) * log1p(|x|), elementwise."""
    return features.sign() * features.abs().log1p()


class _ZScore(nn.Module):
    """Subtracts the mean and divides by the standard deviation, or by 1 if a feature is constant, as scikit-learn does.

    A feature whose deviation is below the resolution of float32 at its mean counts as constant.
    """

    def __init__(self, statistics: LogStatistics) -> None:
        super().__init__()
        mean, std = torch.tensor(statistics.mean), torch.tensor(statistics.std)
        is_constant = std <= mean.abs() * torch.finfo(torch.float32).eps
        self.register_buffer("_mean", mean, persistent=False)
        self.register_buffer("_std", torch.where(is_constant, 1.0, std), persistent=False)
        self._mean: torch.Tensor
        self._std: torch.Tensor

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return (features - self._mean) / self._std


class Featurization(nn.Module):
    """Takes logarithms of the continuous features and concatenates the binary features.

    Non-finite values become 0. The configuration chooses between the logarithm only, the logarithm of clamped features,
    the logarithm normalized by statistics from a file and clamped, and the logarithm followed by batch norm, clamp and
    a layer norm over all features.
    """

    def __init__(
        self, continuous: int, binary: int, config: FeaturizationConfig, names: Sequence[str] | None = None
    ) -> None:
        """Build the layers.

        Args:
          continuous: number of continuous features.
          binary: number of binary features.
          config: the transformation.
          names: names of the continuous features, if they have any.

        Raises:
          ConfigError: the file with the statistics cannot be read, or has statistics of other features.
        """
        super().__init__()
        self._concat_binary = "binary" in config.feature_names_to_concat
        self.out_features = continuous + (binary if self._concat_binary else 0)
        clip, double_norm, z_score = (
            config.clip_log1p_abs_config,
            config.double_norm_log_config,
            config.z_score_log_config,
        )
        assert config.log1p_abs_config is not None or clip or double_norm or z_score
        self._clip_before = clip.clip_magnitude if clip is not None else None
        self._clip_after: float | None = None
        self.z_score: _ZScore | None = None
        batch_norm: BatchNormConfig | None = None
        layer_norm: LayerNormConfig | None = None
        if double_norm is not None:
            self._clip_after = double_norm.clip_magnitude
            batch_norm, layer_norm = double_norm.batch_norm_config, double_norm.layer_norm_config
        if z_score is not None:
            self._clip_after = z_score.clip_magnitude
            self.z_score = _ZScore(read_log_statistics(z_score.analysis_path, continuous, names))
            batch_norm = BatchNormConfig() if z_score.use_batch_norm else None
        self.batch_norm = (
            nn.BatchNorm1d(continuous, affine=batch_norm.affine, momentum=batch_norm.momentum)
            if batch_norm is not None and continuous  # torch refuses a batch norm of nothing
            else None
        )
        self.layer_norm = (
            LayerNorm(self.out_features, layer_norm) if layer_norm is not None and self.out_features else None
        )

    def forward(self, continuous: torch.Tensor, binary: torch.Tensor) -> torch.Tensor:
        """Return the input of the backbone, [batch, out_features], given [batch, continuous] and [batch, binary]."""
        features = finite(continuous)
        if self._clip_before is not None:
            features = features.clamp(-self._clip_before, self._clip_before)
        features = log1p_abs(features)
        if self.z_score is not None:
            features = self.z_score(features)
        if self.batch_norm is not None:
            features = self.batch_norm(features)
        if self._clip_after is not None:
            features = features.clamp(-self._clip_after, self._clip_after)
        if self._concat_binary:
            features = torch.cat([features, bounded(binary, _LARGEST_BINARY)], dim=1)
        return features if self.layer_norm is None else self.layer_norm(features)
