"""Implements DCN-v2, which multiplies features with each other explicitly (Wang et al. 2021, arXiv 2008.13535)."""

import torch
from torch import nn

from common.modules.config import DcnConfig
from common.modules.mlp import Mlp, linear, projection


class CrossLayer(nn.Module):
    """Computes x0 * (W x + b) + x (section 3.2 of the paper), or that with W = U V^T of low rank (section 3.5)."""

    def __init__(self, features: int, rank: int | None) -> None:
        super().__init__()
        self.projection = projection(features, rank) if rank is not None else nn.Identity()
        self.weight = linear(rank or features, features)

    def forward(self, first: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        """Return [batch, features], given the input of the first layer and of this one, both [batch, features]."""
        outputs: torch.Tensor = first * self.weight(self.projection(inputs)) + inputs
        return outputs


class Dcn(nn.Module):
    """Applies cross layers and an MLP, in parallel or in series (figure 1 of the paper), then another MLP.

    The output of n cross layers is a polynomial of degree n + 1 in the inputs (section 4.1 of the paper).
    """

    def __init__(self, in_features: int, config: DcnConfig) -> None:
        super().__init__()
        self._parallel = config.use_parallel
        self.crosses = nn.ModuleList(
            CrossLayer(in_features, config.projection_dim) for _ in range(config.poly_degree - 1)
        )
        self.mlp = Mlp(in_features, config.parallel_mlp) if config.parallel_mlp is not None else None
        size = in_features
        if self.mlp is not None:
            size = self.mlp.out_features + (in_features if self._parallel else 0)
        self.output_mlp = Mlp(size, config.output_mlp) if config.output_mlp is not None else None
        self.out_features = size if self.output_mlp is None else self.output_mlp.out_features

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return [batch, out_features] for inputs [batch, in_features]."""
        net = inputs
        for cross in self.crosses:
            net = cross(inputs, net)
        if self.mlp is not None:
            net = torch.cat([net, self.mlp(inputs)], dim=1) if self._parallel else self.mlp(net)
        return net if self.output_mlp is None else self.output_mlp(net)
