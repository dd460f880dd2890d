"""Builds the relations of a model from its configuration."""

from projects.twhin.data.relations import Relations
from projects.twhin.model.config import TwhinModelConfig


def build_relations(config: TwhinModelConfig) -> Relations:
    """Index the relations of a model by their ids.

    Raises:
      ConfigError: the file with their names is invalid.
    """
    rows = {name: table.num_embeddings for name, table in config.tables.items()}
    return Relations(config.relation_list, rows, config.operator_sides)
