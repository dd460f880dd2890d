"""TwHIN's optimizers: one of each table, fused into the backward pass, and one of the relations' operators."""

import torch

from common.optimizers.build import build_optimizer
from common.optimizers.learning_rate import JoinedRates
from core.sharding import ShardedModel, TableLearningRates
from projects.twhin.model.config import TwhinModelConfig
from projects.twhin.model.scorer import EdgeScorer


def build_optimizers(
    model: ShardedModel, config: TwhinModelConfig, scorer: EdgeScorer
) -> tuple[torch.optim.Optimizer, JoinedRates]:
    """The optimizer of the operators, and the learning rates of all: "relations", and "table/<name>" of each table.

    model: with the tables and the scorer.
    """
    optimizer, rates = build_optimizer(scorer.parameters(), config.translation_optimizer, "relations")
    of_tables = {table.name: table.optimizer.rate for table in config.embeddings.tables}
    return optimizer, JoinedRates(rates, TableLearningRates(model, of_tables))
