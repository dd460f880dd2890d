"""Draws, sets and measures the rows of sharded embedding tables. Each rank handles the rows that it holds."""

import zlib
from collections.abc import Mapping

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch.distributed._shard.sharded_tensor import ShardedTensor

# Number of rows whose initial values are drawn together, whichever rank holds them.
_ROWS_PER_DRAW = 16_384


def draw_rows(weight: ShardedTensor, table: str, scale: float, seed: int) -> None:
    """Fill a table with normally distributed values, which depend on (seed, table, row) and not on the sharding.

    Args:
      weight: weights of the table.
      table: name of the table.
      scale: standard deviation of the values.
      seed: seed of the values.
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
    """Set those of some rows of a table that this rank holds.

    Args:
      weight: weights of the table.
      rows: row numbers, int64 [n].
      values: new values, float32 [n, embedding_dim].
    """
    for local in weight.local_shards():
        first, first_column = local.metadata.shard_offsets
        num_rows, width = local.metadata.shard_sizes
        own = (rows >= first) & (rows < first + num_rows)
        at = torch.from_numpy(rows[own] - first).to(local.tensor.device)
        cut = torch.from_numpy(values[own, first_column : first_column + width])
        local.tensor[at] = cut.to(local.tensor)


def mean_norms(weights: Mapping[str, ShardedTensor]) -> dict[str, float]:
    """Return the mean L2 norm of the rows of each table, by table. Collective."""
    norms = {}
    for table, weight in weights.items():
        squares = torch.zeros(weight.size()[0], dtype=torch.float64)
        for local in weight.local_shards():
            first, num_rows = local.metadata.shard_offsets[0], local.metadata.shard_sizes[0]
            row_norms = torch.linalg.vector_norm(local.tensor, dim=1, dtype=torch.float64)
            squares[first : first + num_rows] += row_norms.square().cpu()
        dist.all_reduce(squares)
        norms[table] = squares.sqrt().mean().item()
    return norms
