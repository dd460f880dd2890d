"""Learns how much the position at which a tweet was shown contributes to engagement, and leaves it aside in serving."""

import dataclasses

import torch
import torch.nn.functional as F
from torch import nn

from common.errors import ConfigError
from common.features.config import FIRST_VALUE_ROW
from common.features.layout import FeatureLayout, Lookup
from projects.home.recap.data.schema import FeatureWidths
from projects.home.recap.model.config import PositionDebiasConfig


def check_position_index(config: PositionDebiasConfig, widths: FeatureWidths, key_path: str) -> None:
    """Raise ConfigError if the position is a discrete feature that a data set does not have.

    Args:
      config: configuration of the position.
      widths: widths of the data set's features.
      key_path: path of the data set within the whole configuration, for the message.
    """
    if config.position_feature_index is not None and config.position_feature_index >= widths.discrete:
        raise ConfigError(
            f"model.position_debias_config.position_feature_index is {config.position_feature_index} (counted from 0), "
            f"but {key_path} has {widths.discrete or 'no'} discrete features. Check {key_path}.seg_dense_schema"
        )


def without_position(layout: FeatureLayout, config: PositionDebiasConfig) -> tuple[FeatureLayout, list[int]]:
    """Return the layout of the features except the position, and the columns of the ids that remain."""
    lookups: list[Lookup] = []
    columns: list[int] = []
    for lookup in layout.lookups:
        if lookup.feature != config.position_feature:
            lookups.append(dataclasses.replace(lookup, begin=len(columns)))
            columns += range(lookup.begin, lookup.end)
    used = {lookup.table for lookup in lookups}
    tables = tuple(table for table in layout.tables if table.name in used)
    return dataclasses.replace(layout, lookups=tuple(lookups), tables=tables), columns


class PositionDebias(nn.Module):
    """Looks up an embedding of the position in training, and returns zeros in evaluation.

    In training, the position of some examples is dropped, so that the model learns to predict without it (Zhao et al.
    2019, "Recommending What Video to Watch Next", RecSys, doi 10.1145/3298689.3346997).
    """

    def __init__(self, config: PositionDebiasConfig, layout: FeatureLayout | None = None) -> None:
        """Initialize weights uniformly in +-sqrt(1 / rows), as in small_embeddings.

        Args:
          config: its configuration.
          layout: layout of the configured features; None without.
        """
        super().__init__()
        self._index, name = config.position_feature_index, config.position_feature
        lookups = layout.lookups if layout is not None else ()
        self._column = next((lookup.begin for lookup in lookups if lookup.feature == name), None)
        self._drop_probability = config.drop_probability
        self.out_features = config.num_dims
        self.positions = nn.Embedding(config.max_position + 1, config.num_dims)
        bound = self.positions.num_embeddings**-0.5
        nn.init.uniform_(self.positions.weight, -bound, bound)

    def forward(self, discrete: torch.Tensor | None, ids: torch.Tensor | None, batch_size: int) -> torch.Tensor:
        """Return the embeddings, float32 [batch, out_features]; zeros where the position is dropped or negative.

        Args:
          discrete: discrete features, integers [batch, discrete]. Required in training if they hold the position.
          ids: rows of the configured features' tables, integers [batch, num_ids]. Required in training otherwise.
          batch_size: number of examples.
        """
        weight = self.positions.weight
        if not self.training:
            return torch.zeros(batch_size, self.out_features, dtype=weight.dtype, device=weight.device)
        if self._index is not None:
            assert discrete is not None, "discrete is required in training: it holds the position"
            positions = discrete[:, self._index].long()
        else:
            assert ids is not None, "ids is required in training: it holds the position"
            positions = ids[:, self._column].long() - FIRST_VALUE_ROW
        kept = (torch.rand(batch_size, device=weight.device) >= self._drop_probability) & (positions >= 0)
        embedded = F.embedding(positions.clamp(0, self.positions.num_embeddings - 1), weight)
        return embedded * kept[:, None]
