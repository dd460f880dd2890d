"""Embeddings of discrete features, in tables that are small enough for every process to hold a full copy."""

import torch
from torch import nn

from common.errors import ConfigError
from projects.home.recap.data.schema import FeatureWidths
from projects.home.recap.model.config import SmallEmbeddingsConfig


def smallest_table_sizes(config: SmallEmbeddingsConfig) -> dict[int, int]:
    """Return the number of ids that all tables of a discrete feature have, by position of the feature."""
    sizes: dict[int, int] = {}
    for table in config.tables:
        sizes[table.index] = min(table.num_embeddings, sizes.get(table.index, table.num_embeddings))
    return sizes


def check_table_indices(config: SmallEmbeddingsConfig, widths: FeatureWidths, key_path: str) -> None:
    """Raise ConfigError if a table refers to a discrete feature that a data set does not have.

    Args:
      config: the tables.
      widths: widths of the data set's features.
      key_path: path of the data set within the whole configuration, for the message.
    """
    for table in config.tables:
        if table.index >= widths.discrete:
            raise ConfigError(
                f"model.small_embeddings.tables: the table {table.name} has index {table.index} (counted from 0), but "
                f"{key_path} has {widths.discrete or 'no'} discrete features. Check {key_path}.seg_dense_schema"
            )


class SmallEmbeddings(nn.Module):
    """Looks up one discrete feature in each table. Gradients are dense, as for any other weight."""

    def __init__(self, config: SmallEmbeddingsConfig) -> None:
        """Initialize weights uniformly in +-sqrt(1 / num_embeddings), as DLRM's reference does (arXiv 1906.00091)."""
        super().__init__()
        self._indices = [table.index for table in config.tables]
        # The prefix prevents a clash of names like "type" with attributes of nn.Module.
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
        self.widths = [table.embedding_dim for table in config.tables]

    def forward(self, discrete: torch.Tensor) -> torch.Tensor:
        """Return the embeddings, [batch, sum(widths)], concatenated in the configured order of the tables.

        Args:
          discrete: discrete features, int64 [batch, discrete]. Those of the tables must be ids within their tables.
        """
        tables = zip(self._indices, self.tables.values(), strict=True)
        return torch.cat([table(discrete[:, index]) for index, table in tables], dim=1)
