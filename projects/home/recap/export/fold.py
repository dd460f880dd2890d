"""Folds the parts of a ranker that scale and shift the outputs of a linear layer into that layer.

In evaluation, these are the batch norms of MLPs and the affine maps of towers. An operation takes a microsecond or two,
whatever its size, so that they matter for small batches: benchmarks/serving.md.
"""

import copy

import torch
from torch import nn

from common.modules.mlp import Mlp
from projects.home.recap.model.architectures import AffineMapLayer
from projects.home.recap.model.heavy_ranker import HeavyRanker


@torch.no_grad()
def folded(ranker: HeavyRanker) -> HeavyRanker:
    """Return a copy of a ranker in evaluation mode, with fewer layers. Its outputs differ by rounding.

    The copy shares the tensors of layers that stay as they are, which may be large tables.
    """
    assert not ranker.training, "a batch norm in training depends on the batch"
    shared = {id(tensor): tensor for tensor in [*ranker.parameters(), *ranker.buffers()]}
    ranker = copy.deepcopy(ranker, shared)
    for module in [*ranker.modules()]:
        if isinstance(module, Mlp):
            module.layers = _fold_batch_norms(module.layers)
    for name, tower in ranker.towers.items():
        if isinstance(tower, nn.Sequential):
            architecture, affine = tower
            assert isinstance(affine, AffineMapLayer)
            *_, last = (module for module in architecture.modules() if isinstance(module, Mlp))
            last.layers[-1] = _scaled(last.layers[-1], affine.scale[None], affine.bias)
            ranker.towers[name] = architecture
    return ranker.eval()


def _fold_batch_norms(layers: nn.Sequential) -> nn.Sequential:
    """Return layers without batch norms. Each follows a linear layer."""
    kept: list[nn.Module] = []
    for layer in layers:
        if isinstance(layer, nn.BatchNorm1d):
            assert layer.running_mean is not None
            assert layer.running_var is not None
            scale = (layer.running_var + layer.eps).rsqrt()
            if layer.weight is not None:
                scale = scale * layer.weight
            shift = -layer.running_mean * scale
            kept[-1] = _scaled(kept[-1], scale, shift if layer.bias is None else shift + layer.bias)
        else:
            kept.append(layer)
    return nn.Sequential(*kept)


def _scaled(layer: nn.Module, scale: torch.Tensor, shift: torch.Tensor) -> nn.Linear:
    """Return a linear layer with the outputs scale * outputs + shift. scale and shift: [outputs], or [1] for all."""
    assert isinstance(layer, nn.Linear)
    result = nn.Linear(layer.in_features, layer.out_features).requires_grad_(False)
    result.weight.copy_(layer.weight * scale[:, None])
    result.bias.copy_(layer.bias * scale + shift)
    return result
