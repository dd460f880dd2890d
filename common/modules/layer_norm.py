"""Implements layer normalization that returns zeros, not NaN, for a constant row."""

import torch
import torch.nn.functional as F
from torch import nn

from common.modules.config import LayerNormConfig

# Lower bound for epsilon. With an epsilon of 0, a constant row would be 0 / 0.
_SMALLEST_EPSILON = 1e-12


class LayerNorm(nn.Module):
    """Layer normalization over the last axis (arXiv 1607.06450)."""

    def __init__(self, features: int, config: LayerNormConfig) -> None:
        super().__init__()
        self._epsilon = max(config.epsilon, _SMALLEST_EPSILON)
        self.weight = nn.Parameter(torch.ones(features)) if config.scale else None
        self.bias = nn.Parameter(torch.zeros(features)) if config.center else None

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Normalize inputs [batch, features]; the output has the same shape."""
        return F.layer_norm(inputs, inputs.shape[-1:], self.weight, self.bias, self._epsilon)
