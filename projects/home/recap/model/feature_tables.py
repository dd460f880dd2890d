"""Looks up the categories of configured features in embedding tables, of which every process holds a full copy."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from common.errors import ConfigError
from common.features.config import UNKNOWN_ROW
from common.features.layout import NO_ROW, FeatureLayout, Lookup
from common.modules.keys import module_key


class FeatureTables(nn.Module):
    """Looks up each feature in its table, and pools lists. Gradients are dense, as for any other weight.

    In training, replaces values at random by the unknown row, so that it is trained (arXiv 1603.04351, section 3).
    """

    def __init__(self, layout: FeatureLayout, columns: Sequence[int] | None = None) -> None:
        """Initialize weights uniformly in +-sqrt(1 / num_rows), as DLRM's reference does (arXiv 1906.00091).

        Args:
          layout: the lookups and the tables.
          columns: the columns of the ids that the lookups of the layout count; None for all.

        Raises:
          ConfigError: two names of tables differ only in '.' and '/'.
        """
        super().__init__()
        self.tables = nn.ModuleDict(
            {module_key(table.name): nn.Embedding(table.num_rows, table.dim) for table in layout.tables}
        )
        if len(self.tables) != len(layout.tables):
            raise ConfigError("features: the names of two tables differ only in '.' and '/'. Rename one of them")
        for table in self.tables.values():
            assert isinstance(table, nn.Embedding)
            bound = table.num_embeddings**-0.5
            nn.init.uniform_(table.weight, -bound, bound)
        self._lookups = layout.lookups
        self.register_buffer("_columns", None if columns is None else torch.tensor(columns), persistent=False)
        self._columns: torch.Tensor | None
        dims = {table.name: table.dim for table in layout.tables}
        self.widths = [dims[lookup.table] for lookup in layout.lookups]
        self.replacement = _Replacement(layout) if any(table.replacement.any() for table in layout.tables) else None

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the embeddings, [batch, sum of widths], concatenated in the order of the lookups.

        Args:
          ids: rows of tables, or NO_ROW, integers [batch, num_ids].
        """
        rows = (ids if self._columns is None else ids.index_select(1, self._columns)).long()
        if self.training and self.replacement is not None:
            rows = self.replacement(rows)
        return torch.cat([self._look_up(lookup, rows) for lookup in self._lookups], dim=1)

    def _look_up(self, lookup: Lookup, rows: torch.Tensor) -> torch.Tensor:
        weight = self.tables[module_key(lookup.table)].weight
        assert isinstance(weight, torch.Tensor)
        if lookup.end == lookup.begin + 1:
            return F.embedding(rows[:, lookup.begin], weight)
        own = rows[:, lookup.begin : lookup.end]
        present = (own != NO_ROW).to(weight.dtype)
        if torch.compiler.is_exporting():  # ONNX has no fused sum, and would loop over the rows of a batch
            sums = torch.bmm(present[:, None, :], F.embedding(own.clamp(min=0), weight)).squeeze(1)
        else:
            # The fused sum takes half the time of a lookup of all rows, a product with the mask and a sum.
            sums = F.embedding_bag(own.clamp(min=0), weight, mode="sum", per_sample_weights=present)
        if lookup.pooling != "mean":
            return sums
        num_values = present[:, :: lookup.num_hashes].sum(dim=1, keepdim=True)
        return sums / num_values.clamp(min=1)


class _Replacement(nn.Module):
    """Replaces values at random by the unknown row, with the probability of their row."""

    def __init__(self, layout: FeatureLayout) -> None:
        super().__init__()
        offsets, num_rows = {}, 0
        for table in layout.tables:
            offsets[table.name] = num_rows
            num_rows += table.num_rows
        # For each column of ids: the first row of its table, the column of its value's first hash, and what an unknown
        # value has there.
        offset, first, unknown = [], [], []
        for lookup in layout.lookups:
            for column in range(lookup.begin, lookup.end):
                hash_index = (column - lookup.begin) % lookup.num_hashes
                offset.append(offsets[lookup.table])
                first.append(column - hash_index)
                unknown.append(NO_ROW if hash_index else UNKNOWN_ROW)
        self.register_buffer("_offset", torch.tensor(offset), persistent=False)
        self.register_buffer("_first", torch.tensor(first), persistent=False)
        self.register_buffer("_unknown", torch.tensor(unknown), persistent=False)
        probabilities = torch.cat([torch.from_numpy(table.replacement) for table in layout.tables])
        self.register_buffer("_probabilities", probabilities, persistent=False)
        self._offset: torch.Tensor
        self._first: torch.Tensor
        self._unknown: torch.Tensor
        self._probabilities: torch.Tensor

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the rows, int64 [batch, num_ids], after replacement."""
        # A place without a value has the probability of the missing row, which is 0.
        probabilities = self._probabilities[rows.clamp(min=0) + self._offset]
        is_replaced = torch.rand(rows.shape, device=rows.device) < probabilities
        return torch.where(is_replaced[:, self._first], self._unknown, rows)
