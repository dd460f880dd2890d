"""TwHIN: embeddings of entities in sharded tables, and a scorer of the edges between them."""

from collections.abc import Mapping

import torch
from torch import nn

from common.modules.embedding.tables import build_tables, look_up
from projects.twhin.data.batch import EdgeBatch
from projects.twhin.data.relations import Relations
from projects.twhin.model.config import TwhinModelConfig
from projects.twhin.model.edge_loss import edge_loss
from projects.twhin.model.negatives import draw_negatives
from projects.twhin.model.ranking import Candidates, rank_edges
from projects.twhin.model.scorer import EdgeScorer


class Twhin(nn.Module):
    """Computes `loss, outputs = model(batch)`.

    In training, the outputs are empty. In evaluation, the loss is 0 and the outputs are the edges' ranks.
    """

    def __init__(
        self,
        config: TwhinModelConfig,
        relations: Relations,
        *,
        global_negatives: int,
        in_batch_negatives: int,
        candidates: Candidates,
    ) -> None:
        """Build the model. Its tables have no memory until core.models.sharded.shard() allocates it.

        Args:
          config: configuration of the model.
          relations: relations of the model.
          global_negatives: number of uniform negatives per side and table in training.
          in_batch_negatives: maximum number of in-batch negatives per side and table in training.
          candidates: candidates for ranking in evaluation.
        """
        super().__init__()
        self._config = config
        self._relations = relations
        self._global_negatives = global_negatives
        self._in_batch_negatives = in_batch_negatives
        self._candidates = candidates
        self._table_names = tuple(config.tables)
        self.tables = build_tables(config.embeddings.tables)
        self.scorer = EdgeScorer(config, relations)

    def forward(self, batch: EdgeBatch) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
        if self.training:
            negatives = draw_negatives(batch, self._relations, self._global_negatives, self._in_batch_negatives)
            return edge_loss(self.scorer, self._config, batch, negatives, self._look_up), {}
        return batch.weights.new_zeros(()), rank_edges(self.scorer, batch, self._look_up, self._candidates)

    def _look_up(self, ids: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return look_up(self.tables, self._table_names, ids)
