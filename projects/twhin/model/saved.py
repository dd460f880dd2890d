"""Reads the model's tables and the relations' parameters from a checkpoint."""

from typing import Any

import torch
from numpy.typing import NDArray

from common.checkpointing.reader import CheckpointReader
from common.errors import UserError
from common.modules.keys import module_key, name_of_key
from common.process.memory import memory_shortage
from projects.twhin.data.relations import Relations
from projects.twhin.model.config import TwhinModelConfig
from projects.twhin.model.scorer import EdgeScorer

_TABLES = "model.tables.embeddings."
_SCORER = "model.scorer."
_OPERATORS = f"{_SCORER}operators."
_WEIGHT = ".weight"


def table_sizes(checkpoint: CheckpointReader) -> dict[str, tuple[int, int]]:
    """Return the number of rows and the dimension of each table, by name.

    The result is empty if the checkpoint is of another model.

    Raises:
      NoCheckpointError: the checkpoint was removed.
      DamagedCheckpointError: the checkpoint is damaged.
    """
    tables = checkpoint.types(_TABLES)
    return {name_of_key(name.removesuffix(_WEIGHT)): (table.size(0), table.size(1)) for name, table in tables.items()}


def check_table_sizes(checkpoint: CheckpointReader, config: TwhinModelConfig) -> dict[str, tuple[int, int]]:
    """Return the number of rows and the dimension of each table, which must be those of the configuration.

    Raises:
      UserError: the tables differ.
      NoCheckpointError: the checkpoint was removed.
      DamagedCheckpointError: the checkpoint is damaged.
    """
    sizes = table_sizes(checkpoint)
    for name, table in config.tables.items():
        expected = (table.num_embeddings, table.embedding_dim)
        if sizes.get(name) != expected:
            found = f"is {sizes[name][0]} x {sizes[name][1]}" if name in sizes else "is missing"
            raise UserError(
                f"{checkpoint.path}: the table {name} {found}, but the config.yaml of the run says "
                f"{expected[0]} x {expected[1]}. Another run wrote this checkpoint. Give its path in that run's "
                "save_dir"
            )
    return sizes


def read_table(checkpoint: CheckpointReader, table: str, size: tuple[int, int]) -> NDArray[Any]:
    """Return a whole table, [rows, dim], float32.

    Args:
      checkpoint: checkpoint that contains the table.
      table: name of the table.
      size: size of the table that table_sizes() returns.

    Raises:
      NoCheckpointError: the checkpoint was removed.
      DamagedCheckpointError: the checkpoint is damaged.
      UserError: there is too little memory for the table.
    """
    if shortage := memory_shortage(4 * size[0] * size[1]):
        raise UserError(f"{checkpoint.path}: table {table}: holding {size[0]:,} rows of {size[1]} numbers {shortage}")
    values = torch.empty(size)
    checkpoint.load({module_key(table) + _WEIGHT: values}, _TABLES)
    return values.numpy()


def read_scorer(checkpoint: CheckpointReader, config: TwhinModelConfig, relations: Relations) -> EdgeScorer:
    """Return the scorer of the model with the parameters of its operators, float32, without gradients.

    Args:
      checkpoint: checkpoint of the model.
      config: configuration of the model.
      relations: relations of the model.

    Raises:
      NoCheckpointError: the checkpoint was removed.
      DamagedCheckpointError: the checkpoint is damaged.
      UserError: the operators of the checkpoint are not those of the configuration.
    """
    scorer = EdgeScorer(config, relations).requires_grad_(False).eval()
    weights = scorer.state_dict()
    expected, saved = (
        {name: list(weight.shape) for name, weight in each.items()} for each in (weights, checkpoint.types(_SCORER))
    )
    if saved != expected:
        raise UserError(
            f"{checkpoint.path}: the operators of the relations are {saved}, but the config.yaml of the run says "
            f"{expected}. Another run wrote this checkpoint, or the file with the names of the relations has changed"
        )
    if weights:
        checkpoint.load(weights, _SCORER)
    return scorer


def read_operators(checkpoint: CheckpointReader) -> dict[tuple[str, str], NDArray[Any]]:
    """Return the parameters of the relations' operators, [relations, ...], float32, by side and <operator>_<dim>.

    The rows belong to the relations with that operator and dimension, in the order of their ids.

    Raises:
      NoCheckpointError: the checkpoint was removed.
      DamagedCheckpointError: the checkpoint is damaged.
    """
    operators = {}
    for name, weight in checkpoint.tensors(_OPERATORS).items():
        side, key = name.removesuffix(_WEIGHT).split(".")
        operators[side, key] = weight.numpy()
    return operators
