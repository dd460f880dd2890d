"""What a checkpoint holds of the model: tables, and the relations' parameters."""

from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from common.checkpointing.storage import load_tensors, read_tensors, tensor_sizes

_TABLES = "model.tables.embeddings."
_OPERATORS = "model.scorer.operators."
_WEIGHT = ".weight"


def table_sizes(checkpoint: Path) -> dict[str, tuple[int, int]]:
    """Rows and dimension of each table, by name; {} in a checkpoint of another model.

    Raises:
      NoCheckpointError, DamagedCheckpointError: there is no complete and undamaged checkpoint.
    """
    sizes = tensor_sizes(checkpoint, _TABLES)
    return {name.removesuffix(_WEIGHT): (size[0], size[1]) for name, size in sizes.items()}


def read_table(checkpoint: Path, table: str, size: tuple[int, int]) -> NDArray[Any]:
    """A whole table, [rows, dim], float32.

    Args:
      checkpoint: whose files table_sizes() has verified.
      table: its name.
      size: as table_sizes() says.

    Raises:
      NoCheckpointError, DamagedCheckpointError: as table_sizes().
    """
    values = torch.empty(size)
    load_tensors(checkpoint, {table + _WEIGHT: values}, _TABLES)
    return values.numpy()


def read_operators(checkpoint: Path) -> dict[tuple[str, str], NDArray[Any]]:
    """Parameters of the relations' operators, [relations, ...], float32, by side and <operator>_<dim>.

    Rows are those of the relations with that operator and dimension, in the order of their ids.

    Raises:
      NoCheckpointError, DamagedCheckpointError: as table_sizes().
    """
    operators = {}
    for name, weight in read_tensors(checkpoint, _OPERATORS).items():
        side, key = name.removesuffix(_WEIGHT).split(".")
        operators[side, key] = weight.numpy()
    return operators
