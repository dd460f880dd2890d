"""Initializes, sets and measures the rows of sharded embedding tables. Each rank handles its own shards."""

import zlib
from collections.abc import Mapping

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch.distributed._shard.sharded_tensor import ShardedTensor

# Number of rows to draw at a time. The blocks do not depend on the sharding, so neither do the values.
_ROWS_PER_DRAW = 16_384


def draw_rows(weight: ShardedTensor, table: str, scale: float, seed: int) -> None:
    """Fill a table with normally distributed values that depend only on (seed, table, row), not on the sharding.

    Args:
      weight: weight of the table.
      table: name of the table.
      scale: standard deviation of the values.
      seed: seed of the run.
    """
    num_columns = weight.size()[1]
    for local in weight.local_shards():
        first, first_column = local.metadata.shard_offsets
        num_rows, width = local.metadata.shard_sizes
        for draw in range(first // _ROWS_PER_DRAW, -(-(first + num_rows) // _ROWS_PER_DRAW)):
            begin = draw * _ROWS_PER_DRAW
            drawn = _generator(seed, table, draw).standard_normal((_ROWS_PER_DRAW, num_columns), np.float32)
            low, high = max(begin, first), min(begin + _ROWS_PER_DRAW, first + num_rows)
            values = drawn[low - begin : high - begin, first_column : first_column + width] * scale
            local.tensor[low - first : high - first] = torch.from_numpy(values)


def _generator(seed: int, table: str, draw: int) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(table.encode()), draw])


def set_rows(weight: ShardedTensor, rows: NDArray[np.int64], values: NDArray[np.float32]) -> None:
    """Set rows of a table. Each rank sets only the rows that it holds.

    Args:
      weight: weight of the table.
      rows: row indices [n], each below the number of rows of the table.
      values: values of the rows [n, embedding_dim].
    """
    for local in weight.local_shards():
        first, first_column = local.metadata.shard_offsets
        num_rows, width = local.metadata.shard_sizes
        own = (rows >= first) & (rows < first + num_rows)
        at = torch.from_numpy(rows[own] - first).to(local.tensor.device)
        cut = torch.from_numpy(values[own, first_column : first_column + width])
        local.tensor[at] = cut.to(local.tensor)


def mean_norms(weights: Mapping[str, ShardedTensor]) -> dict[str, float]:
    """Return the mean L2 norm of the rows of each table, by table name. Collective."""
    norms = {}
    for table, weight in weights.items():
        squares = torch.zeros(weight.size()[0], dtype=torch.float64)
        for local in weight.local_shards():
            first, num_rows = local.metadata.shard_offsets[0], local.metadata.shard_sizes[0]
            for begin in range(0, num_rows, _ROWS_PER_DRAW):  # a float64 copy of the whole shard would not fit
                rows = local.tensor[begin : begin + _ROWS_PER_DRAW]
                row_norms = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
                squares[first + begin : first + begin + len(rows)] += row_norms.square().cpu()
        dist.all_reduce(squares)
        norms[table] = squares.sqrt().mean().item()
    return norms
