"""Implements MaskNet, which multiplies features by learned masks (Wang, She, Zhang 2021, arXiv 2102.07619)."""

import torch
import torch.nn.functional as F
from torch import nn

from common.modules.config import MaskBlockConfig, MaskNetConfig
from common.modules.mlp import Mlp, linear


class MaskBlock(nn.Module):
    """Computes ReLU(LN(W (mask * inputs))) with mask = W2 ReLU(W1 mask_inputs) (equations 4, 7 and 9 of the paper)."""

    def __init__(self, in_features: int, mask_features: int, config: MaskBlockConfig) -> None:
        super().__init__()
        aggregation = config.aggregation_size or max(1, int(mask_features * (config.reduction_factor or 0)))
        self.input_norm = nn.LayerNorm(in_features) if config.input_layer_norm else nn.Identity()
        self.mask = nn.Sequential(linear(mask_features, aggregation), nn.ReLU(), linear(aggregation, in_features))
        self.hidden = linear(in_features, config.output_size)
        self.norm = nn.LayerNorm(config.output_size)

    def forward(self, inputs: torch.Tensor, mask_inputs: torch.Tensor) -> torch.Tensor:
        """Return [batch, output_size] for inputs [batch, in_features] and mask_inputs [batch, mask_features]."""
        return F.relu(self.norm(self.hidden(self.input_norm(inputs) * self.mask(mask_inputs))))


class MaskNet(nn.Module):
    """Applies mask blocks in parallel or in series (figures 4 and 3 of the paper), then an MLP.

    The mask of every block depends on the input of the net.
    """

    def __init__(self, in_features: int, config: MaskNetConfig) -> None:
        super().__init__()
        self._parallel = config.use_parallel
        self.blocks = nn.ModuleList()
        size = in_features
        for block in config.mask_blocks:
            self.blocks.append(MaskBlock(in_features if self._parallel else size, in_features, block))
            size = block.output_size
        if self._parallel:
            size = sum(block.output_size for block in config.mask_blocks)
        self.mlp = Mlp(size, config.mlp) if config.mlp is not None else None
        self.out_features = self.mlp.out_features if self.mlp is not None else size

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return [batch, out_features] for inputs [batch, in_features]."""
        if self._parallel:
            net = torch.cat([block(inputs, inputs) for block in self.blocks], dim=1)
        else:
            net = inputs
            for block in self.blocks:
                net = block(net, inputs)
        return net if self.mlp is None else self.mlp(net)
