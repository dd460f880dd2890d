"""TwHIN: embeddings of entities in sharded tables, and the scores of the edges between them."""

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
    """`loss, outputs = model(batch)`. In training the loss, and no outputs; in evaluation the edges' ranks, and no
    loss (0)."""

    def __init__(
        self,
        config: TwhinModelConfig,
        relations: Relations,
        *,
        global_negatives: int,
        in_batch_negatives: int,
        candidates: Candidates,
    ) -> None:
        """Args:
        config: of the model. Its tables have no memory until they are sharded (core.models.sharded.shard()).
        relations: of the model.
        global_negatives, in_batch_negatives: of training, of each side.
        candidates: of evaluation.
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
