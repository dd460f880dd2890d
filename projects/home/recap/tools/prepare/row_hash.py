"""Hashes the values of rows, so that equal rows are recognized whatever file they came from.

The hash chains XXH64 over the columns, as Spark's xxhash64 of several columns does. It depends on values, not on types:
3 and 3.0 are equal, as are a date and the timestamp of its midnight, and null and NaN. Unlike Spark's, it distinguishes
null followed by a value from the same value followed by null.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from common.features.hashing import SEED, Hashes, hash_integers, hash_strings

_NULL = 0x6E756C6C
"""Stands for null."""


def row_hashes(columns: Sequence[pa.Array]) -> Hashes:
    """Return the hash of each row, uint64 [rows].

    Args:
      columns: arrays of the same length, at least one.
    """
    hashes = np.full(len(columns[0]), SEED, np.uint64)
    for column in columns:
        hashes = _chained(column, hashes)
    return hashes


def split_numbers(hashes: Hashes, shares: Sequence[float]) -> NDArray[np.int8]:
    """Return the number of the split of each hash, int8 [hashes].

    The hash is taken as a number from 0 to 1, so that a split is independent of buckets, which are its remainder.

    Args:
      hashes: uint64 [hashes].
      shares: expected shares of the splits, which sum to 1.
    """
    bounds = np.array([min(int(bound * 2.0**64), 2**64 - 1) for bound in np.cumsum(shares)[:-1]], np.uint64)
    return np.searchsorted(bounds, hashes, side="right").astype(np.int8)


def _chained(column: pa.Array, seeds: Hashes) -> Hashes:
    values, nulls = _values(column)
    if pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
        hashes = _of_lists(values, seeds)
    elif pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        hashes = hash_strings(values, seeds)
    else:
        hashes = hash_integers(values.to_numpy(zero_copy_only=False), seeds)
    if nulls.any():
        hashes[nulls] = hash_integers(np.full(np.count_nonzero(nulls), _NULL, np.int64), seeds[nulls])
    return hashes


def _values(column: pa.Array) -> tuple[pa.Array, NDArray[np.bool_]]:
    """Return values as strings, lists or int64 without nulls, and which of them are null or NaN."""
    kind = column.type
    nulls = column.is_null().to_numpy(zero_copy_only=False)
    if pa.types.is_fixed_size_list(kind):
        return column.cast(pa.list_(kind.value_type)), nulls
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_list(kind):
        return column, nulls
    if pa.types.is_decimal(kind) or pa.types.is_floating(kind):
        numbers = column.cast(pa.float64()).to_numpy(zero_copy_only=False)  # null becomes NaN
        return pa.array(_integers(numbers)), np.isnan(numbers)
    if pa.types.is_temporal(kind):
        column = column.cast(pa.timestamp("us"), safe=False) if not pa.types.is_time(kind) else column
        column = column.view(pa.int64()) if column.type.bit_width == 64 else column.view(pa.int32())
    if pa.types.is_uint64(kind):
        return pa.array(column.fill_null(0).to_numpy().view(np.int64)), nulls
    return column.cast(pa.int64()).fill_null(0), nulls


def _integers(numbers: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return whole numbers as integers, and the bits of others."""
    whole = (numbers == np.trunc(numbers)) & (np.abs(numbers) < 2.0**63)
    return np.where(whole, np.where(whole, numbers, 0).astype(np.int64), numbers.view(np.int64))


def _of_lists(lists: pa.Array, seeds: Hashes) -> Hashes:
    lengths = pc.list_value_length(lists).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    begins = lists.offsets.to_numpy()[:-1].astype(np.int64)
    hashes = hash_integers(lengths, seeds)
    for position in range(int(lengths.max(initial=0))):
        rows = np.flatnonzero(lengths > position)
        hashes[rows] = _chained(lists.values.take(pa.array(begins[rows] + position)), hashes[rows])
    return hashes
