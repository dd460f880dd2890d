"""Implements a multi-layer perceptron."""

import torch
from torch import nn

from common.modules.config import MlpConfig


class Mlp(nn.Module):
    """Chains layers of Linear, batch norm, ReLU and dropout.

    The last layer is only Linear, unless final_layer_activation is set.
    """

    def __init__(self, in_features: int, config: MlpConfig) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        size = in_features
        for index, out_features in enumerate(config.layer_sizes):
            layers.append(linear(size, out_features))
            size = out_features
            if index < len(config.layer_sizes) - 1 or config.final_layer_activation:
                if config.batch_norm is not None:
                    norm = config.batch_norm
                    layers.append(nn.BatchNorm1d(size, affine=norm.affine, momentum=norm.momentum))
                layers.append(nn.ReLU())
                if config.dropout is not None:
                    layers.append(nn.Dropout(config.dropout.rate))
        self.layers = nn.Sequential(*layers)
        self.out_features = size

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return [batch, out_features] for inputs [batch, in_features]."""
        outputs: torch.Tensor = self.layers(inputs)
        return outputs


def linear(in_features: int, out_features: int) -> nn.Linear:
    """Return a Linear layer with Glorot-uniform weights (Glorot and Bengio 2010) and zero bias."""
    layer = nn.Linear(in_features, out_features)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def projection(in_features: int, out_features: int) -> nn.Linear:
    """Return a Linear layer without bias, with Glorot-uniform weights."""
    layer = nn.Linear(in_features, out_features, bias=False)
    nn.init.xavier_uniform_(layer.weight)
    return layer
