"""What a checkpoint holds of the model: tables, and the relations' parameters."""

from typing import Any

import torch
from numpy.typing import NDArray

from common.checkpointing.reader import CheckpointReader

_TABLES = "model.tables.embeddings."
_OPERATORS = "model.scorer.operators."
_WEIGHT = ".weight"


def table_sizes(checkpoint: CheckpointReader) -> dict[str, tuple[int, int]]:
    """Rows and dimension of each table, by name; {} in a checkpoint of another model.

    Raises:
      NoCheckpointError, DamagedCheckpointError: it was removed, or is damaged.
    """
    tables = checkpoint.types(_TABLES)
    return {name.removesuffix(_WEIGHT): (table.size(0), table.size(1)) for name, table in tables.items()}


def read_table(checkpoint: CheckpointReader, table: str, size: tuple[int, int]) -> NDArray[Any]:
    """A whole table, [rows, dim], float32.

    Args:
      checkpoint: with this table.
      table: its name.
      size: as table_sizes() says.

    Raises:
      NoCheckpointError, DamagedCheckpointError: as table_sizes().
    """
    values = torch.empty(size)
    checkpoint.load({table + _WEIGHT: values}, _TABLES)
    return values.numpy()


def read_operators(checkpoint: CheckpointReader) -> dict[tuple[str, str], NDArray[Any]]:
    """Parameters of the relations' operators, [relations, ...], float32, by side and <operator>_<dim>.

    Rows are those of the relations with that operator and dimension, in the order of their ids.

    Raises:
      NoCheckpointError, DamagedCheckpointError: as table_sizes().
    """
    operators = {}
    for name, weight in checkpoint.tensors(_OPERATORS).items():
        side, key = name.removesuffix(_WEIGHT).split(".")
        operators[side, key] = weight.numpy()
    return operators
