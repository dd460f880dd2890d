"""TwHIN's optimizers: one per table, fused into the backward pass, and one for the relations' operators."""

import torch

from common.optimizers.build import build_optimizer
from common.optimizers.learning_rate import CombinedSchedule
from core.models.sharded import ShardedModel, TableScheduler
from projects.twhin.model.config import TwhinModelConfig
from projects.twhin.model.scorer import EdgeScorer


def build_optimizers(
    model: ShardedModel, config: TwhinModelConfig, scorer: EdgeScorer
) -> tuple[torch.optim.Optimizer, CombinedSchedule]:
    """Build the optimizer of the operators and the schedules of all learning rates.

    The learning rates are called "relations" and, for each table, "table/<name>".

    Args:
      model: model that contains the tables and the scorer.
      config: configuration of the model.
      scorer: scorer whose parameters the optimizer updates.
    """
    optimizer, schedule = build_optimizer(scorer.parameters(), config.translation_optimizer, "relations")
    table_rates = {table.name: table.optimizer.rate for table in config.embeddings.tables}
    return optimizer, CombinedSchedule(schedule, TableScheduler(model, table_rates))
