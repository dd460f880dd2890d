"""Implements DLRM, which takes dot products of embeddings with each other (Naumov et al. 2019, arXiv 1906.00091)."""

from collections.abc import Sequence

import torch
from torch import nn

from common.modules.config import DlrmConfig
from common.modules.mlp import Mlp, projection


class Dlrm(nn.Module):
    """Applies an MLP to dense features, takes dot products of its output and the embeddings, then applies another MLP.

    An embedding whose width differs from the output of the bottom MLP is projected to that width, as in mixed-dimension
    embeddings (Ginart et al. 2019, arXiv 1909.11810).
    """

    def __init__(self, in_features: int, embedding_widths: Sequence[int], config: DlrmConfig) -> None:
        """Build the layers.

        Args:
          in_features: number of inputs.
          embedding_widths: widths of the embeddings, which are the last inputs; the inputs before them are dense.
          config: the two MLPs.
        """
        super().__init__()
        self._widths = [in_features - sum(embedding_widths), *embedding_widths]
        self.bottom_mlp = Mlp(self._widths[0], config.bottom_mlp)
        size = self.bottom_mlp.out_features
        self.projections = nn.ModuleList(
            nn.Identity() if width == size else projection(width, size) for width in embedding_widths
        )
        pairs = torch.tril_indices(len(self._widths), len(self._widths), offset=-1)
        self.register_buffer("_pairs", pairs, persistent=False)
        self._pairs: torch.Tensor
        self.top_mlp = Mlp(size + pairs.shape[1], config.top_mlp)
        self.out_features = self.top_mlp.out_features

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return [batch, out_features] for inputs [batch, in_features]."""
        dense, *embeddings = torch.split(inputs, self._widths, dim=1)
        bottom = self.bottom_mlp(dense)
        projected = [project(embedding) for project, embedding in zip(self.projections, embeddings, strict=True)]
        vectors = torch.stack([bottom, *projected], dim=1)
        products = torch.bmm(vectors, vectors.transpose(1, 2))[:, self._pairs[0], self._pairs[1]]
        outputs: torch.Tensor = self.top_mlp(torch.cat([bottom, products], dim=1))
        return outputs
