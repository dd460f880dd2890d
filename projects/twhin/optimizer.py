"""TwHIN's optimizers: one of each table, fused into the backward pass, and one of the relations' operators."""

import torch

from common.optimizers.build import build_optimizer
from common.optimizers.learning_rate import CombinedSchedule
from core.models.sharded import ShardedModel, TableScheduler
from projects.twhin.model.config import TwhinModelConfig
from projects.twhin.model.scorer import EdgeScorer


def build_optimizers(
    model: ShardedModel, config: TwhinModelConfig, scorer: EdgeScorer
) -> tuple[torch.optim.Optimizer, CombinedSchedule]:
    """The optimizer of the operators, and the learning rates of all: "relations", and "table/<name>" of each table.

    model: with the tables and the scorer.
    """
    optimizer, rates = build_optimizer(scorer.parameters(), config.translation_optimizer, "relations")
    of_tables = {table.name: table.optimizer.rate for table in config.embeddings.tables}
    return optimizer, CombinedSchedule(rates, TableScheduler(model, of_tables))
