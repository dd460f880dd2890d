"""From stored features to the backbone's input."""

import torch
from torch import nn

from common.modules.layer_norm import LayerNorm
from projects.home.recap.model.config import FeaturizationConfig


def finite(features: torch.Tensor) -> torch.Tensor:
    """NaN and infinities become 0: a value that is not there."""
    return torch.nan_to_num(features, nan=0.0, posinf=0.0, neginf=0.0)


class Featurization(nn.Module):
    """Continuous features: non-finite to 0, sign(x) log1p(|x|), batch norm, clamp; with the binary, layer norm."""

    def __init__(self, continuous: int, binary: int, config: FeaturizationConfig) -> None:
        """continuous, binary: widths of the features."""
        super().__init__()
        double_norm = config.double_norm_log_config
        assert double_norm is not None
        self._concat_binary = "binary" in config.feature_names_to_concat
        self._clip_magnitude = double_norm.clip_magnitude
        self.out_features = continuous + (binary if self._concat_binary else 0)
        norm = double_norm.batch_norm_config
        self.batch_norm = (
            nn.BatchNorm1d(continuous, affine=norm.affine, momentum=norm.momentum) if norm is not None else None
        )
        self.layer_norm = (
            LayerNorm(self.out_features, double_norm.layer_norm_config)
            if double_norm.layer_norm_config is not None
            else None
        )

    def forward(self, continuous: torch.Tensor, binary: torch.Tensor) -> torch.Tensor:
        """continuous: [batch, continuous], binary: [batch, binary]; returns [batch, out_features]."""
        features = finite(continuous)
        features = features.sign() * features.abs().log1p()
        if self.batch_norm is not None:
            features = self.batch_norm(features)
        features = features.clamp(-self._clip_magnitude, self._clip_magnitude)
        if self._concat_binary:
            features = torch.cat([features, finite(binary)], dim=1)
        return features if self.layer_norm is None else self.layer_norm(features)
