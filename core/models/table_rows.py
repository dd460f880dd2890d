"""The rows of embedding tables in shards: drawing, setting and measuring them, each rank its own."""

import zlib
from collections.abc import Mapping

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch.distributed._shard.sharded_tensor import ShardedTensor

# Initial values are drawn for so many rows at a time, whichever rank holds them.
_ROWS_PER_DRAW = 16_384


def draw_rows(weight: ShardedTensor, table: str, scale: float, seed: int) -> None:
    """Fills a table with normally distributed values, a function of (seed, table, row) whoever holds it.

    scale: their standard deviation.
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
    """Sets rows of a table, as far as this rank holds them.

    Args:
      weight: of the table.
      rows: [n], each below the table's number of rows.
      values: [n, embedding_dim].
    """
    for local in weight.local_shards():
        first, first_column = local.metadata.shard_offsets
        num_rows, width = local.metadata.shard_sizes
        own = (rows >= first) & (rows < first + num_rows)
        at = torch.from_numpy(rows[own] - first).to(local.tensor.device)
        cut = torch.from_numpy(values[own, first_column : first_column + width])
        local.tensor[at] = cut.to(local.tensor)


def mean_norms(weights: Mapping[str, ShardedTensor]) -> dict[str, float]:
    """Mean L2 norm of the rows of each table, by its name. Collective."""
    norms = {}
    for table, weight in weights.items():
        squares = torch.zeros(weight.size()[0], dtype=torch.float64)
        for local in weight.local_shards():
            first, num_rows = local.metadata.shard_offsets[0], local.metadata.shard_sizes[0]
            of_rows = torch.linalg.vector_norm(local.tensor, dim=1, dtype=torch.float64)
            squares[first : first + num_rows] += of_rows.square().cpu()
        dist.all_reduce(squares)
        norms[table] = squares.sqrt().mean().item()
    return norms
