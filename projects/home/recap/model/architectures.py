"""Builds the architecture of the backbone and of the towers."""

from collections.abc import Sequence

import torch
from torch import nn

from common.errors import ConfigError
from common.modules.dcn import Dcn
from common.modules.dlrm import Dlrm
from common.modules.mask_net import MaskNet
from common.modules.mlp import Mlp
from projects.home.recap.model.config import AffineMap, TaskModel


def build_architecture(
    config: TaskModel, in_features: int, embedding_widths: Sequence[int]
) -> Mlp | MaskNet | Dcn | Dlrm:
    """Build the backbone, or a tower without its affine map. Its output has the width `out_features`.

    Args:
      config: the architecture.
      in_features: number of inputs.
      embedding_widths: widths of the embeddings, which are the last inputs. Only a DLRM needs to know them.

    Raises:
      ConfigError: a DLRM has no embeddings.
    """
    if config.dcn_config is not None:
        return Dcn(in_features, config.dcn_config)
    if config.mask_net_config is not None:
        return MaskNet(in_features, config.mask_net_config)
    if config.dlrm_config is None:
        assert config.mlp_config is not None
        return Mlp(in_features, config.mlp_config)
    if not embedding_widths:
        raise ConfigError(
            "model: dlrm_config takes dot products with embeddings, but its input has none. Add embeddings to the "
            "features, or choose another architecture. The input of a tower has them if multi_task_type is share_none "
            "or share_partial"
        )
    return Dlrm(in_features, embedding_widths, config.dlrm_config)


def build_tower(config: TaskModel, in_features: int, embedding_widths: Sequence[int]) -> nn.Module:
    """Build a tower, which maps [batch, in_features] to logits [batch, 1]. See build_architecture()."""
    tower = build_architecture(config, in_features, embedding_widths)
    return tower if config.affine_map is None else nn.Sequential(tower, AffineMapLayer(config.affine_map))


class AffineMapLayer(nn.Module):
    """Computes scale * logits + bias."""

    def __init__(self, config: AffineMap) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(config.scale))
        self.bias = nn.Parameter(torch.tensor(config.bias))

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        return self.scale * logits + self.bias
