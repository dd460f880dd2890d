"""Embeddings of discrete features, in tables so small that every process holds them whole."""

import torch
from torch import nn

from projects.home.recap.model.config import SmallEmbeddingsConfig


class SmallEmbeddings(nn.Module):
    """Looks one discrete feature up in each table; their gradients are dense, as those of any other weight."""

    def __init__(self, config: SmallEmbeddingsConfig) -> None:
        """Weights begin uniform in +-sqrt(1 / num_embeddings), as in DLRM's reference code (arXiv 1906.00091)."""
        super().__init__()
        self._indices = [table.index for table in config.tables]
        # The prefix keeps names like "type" apart from the attributes of a module.
        self.tables = nn.ModuleDict(
            {
                f"table/{table.name.replace('.', '/')}": nn.Embedding(table.num_embeddings, table.embedding_dim)
                for table in config.tables
            }
        )
        for table in self.tables.values():
            assert isinstance(table, nn.Embedding)
            bound = table.num_embeddings**-0.5
            nn.init.uniform_(table.weight, -bound, bound)
        self.out_features = sum(table.embedding_dim for table in config.tables)

    def forward(self, discrete: torch.Tensor) -> torch.Tensor:
        """discrete: int64 [batch, discrete], with ids within the tables; returns [batch, out_features], the tables in
        their order in the configuration."""
        tables = zip(self._indices, self.tables.values(), strict=True)
        return torch.cat([table(discrete[:, index]) for index, table in tables], dim=1)
