"""Selects the best rows of each group in a table of predictions. Knows no files (top_k_files.py)."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from common.features.category import is_text
from common.features.group_encoder import GROUPS, GroupEncoder
from common.features.numeric import value_type

RANK = "rank"
"""Name of the column with the rank of a row in its group, int64, from 1."""


@dataclass(frozen=True)
class TopK:
    """Says which rows to select: those with the highest values of each group, and of equal values the first.

    Attributes:
      k: largest number of rows of a group, at least 1.
      rank_by: name of the column with the values. A NaN ranks below every number.
      group_by: name of the column whose values are groups. Rows without a value are one group. None for one group of
        all rows.
    """

    k: int
    rank_by: str
    group_by: str | None = None


def check_group_by(schema: pa.Schema, column: str) -> None:
    """Raise ValueError if a file has no such column, or one whose values cannot be groups."""
    GroupEncoder(column, "--group_by").check(schema)


def best_of_unit(table: pa.Table, top_k: TopK, location: str) -> tuple[NDArray[np.uint64], pa.Table]:
    """Return the rows of a unit that may be among the best of all units.

    Args:
      table: the rows of the unit, in the order of the input.
      top_k: what to select.
      location: names the unit in messages.

    Returns:
      Hash of the group of each selected row, in ascending order, and the rows. The rows of a group are adjacent, best
      ones first. Dictionaries are decoded.

    Raises:
      DataError: a value of the column of groups is a number that is not a whole one, or does not fit int64.
    """
    table = _without_dictionaries(table)
    if top_k.group_by is None:
        hashes = np.zeros(len(table), np.uint64)
    else:
        encoded = GroupEncoder(top_k.group_by, "--group_by").encode(table, location)
        hashes = encoded[GROUPS].view(np.uint64)
    # Two strings may have the same hash, so that it does not suffice.
    _, codes = _groups(table, top_k)
    rows, _ = _best([hashes, codes], _values(table, top_k), top_k.k)
    return hashes[rows], table.take(pa.array(rows))


def best_of_units(tables: list[pa.Table], top_k: TopK) -> tuple[pa.Table, NDArray[np.int64]]:
    """Return the best rows of tables that best_of_unit() or this function returned.

    Args:
      tables: at least one table, in the order of the units. All have columns of the same types.
      top_k: what to select.

    Returns:
      The rows, sorted by group (no value first, then ascending) and rank, and their ranks from 1, [rows].
    """
    # Files may differ in metadata of columns, and in whether nulls are allowed.
    table = pa.concat_tables(tables, promote_options="default")
    groups, codes = _groups(table, top_k)
    # rank() counts from 1, so that 0 is free for rows without a group.
    places = np.append(0, pc.rank(groups, "ascending").to_numpy()).astype(np.int64)
    rows, ranks = _best([places[codes + 1]], _values(table, top_k), top_k.k)
    return table.take(pa.array(rows)), ranks


def _best(
    groups: list[NDArray[np.uint64] | NDArray[np.int64]], values: NDArray[np.float64], k: int
) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
    """Return the indices of the best k rows of each group, and their ranks, sorted by group and rank.

    Args:
      groups: keys that together name the group of a row, the most significant one first, each [rows].
      values: [rows]. Of equal values, the first ranks higher.
      k: number of rows to keep of each group.
    """
    # The sort is stable, and NaN is last.
    order = np.lexsort((-values, *reversed(groups)))
    is_first = np.arange(len(order)) == 0
    for key in groups:
        in_order = key[order]
        is_first[1:] |= in_order[1:] != in_order[:-1]
    firsts = np.flatnonzero(is_first)
    ranks = np.arange(len(order)) - np.repeat(firsts, np.diff(firsts, append=len(order))) + 1
    kept = ranks <= k
    return order[kept], ranks[kept]


def _values(table: pa.Table, top_k: TopK) -> NDArray[np.float64]:
    values: NDArray[np.float64] = table.column(top_k.rank_by).to_numpy().astype(np.float64)
    return values


def _groups(table: pa.Table, top_k: TopK) -> tuple[pa.Array, NDArray[np.int64]]:
    """Return the distinct groups of a table, and the index of each row's group among them: -1 for no value, [rows]."""
    if top_k.group_by is None:
        return pa.array([0]), np.zeros(len(table), np.int64)
    values = table.column(top_k.group_by)
    if is_text(values.type):
        values = values.cast(pa.large_string())
    else:
        if pa.types.is_floating(values.type):  # integers with nulls become floats with NaN in pandas
            values = pc.if_else(pc.is_nan(values), None, values)
        values = values.cast(pa.int64())
    encoded = pa.array(values.combine_chunks()).dictionary_encode()
    return encoded.dictionary, encoded.indices.fill_null(-1).to_numpy().astype(np.int64)


def _without_dictionaries(table: pa.Table) -> pa.Table:
    """Return the table with the values that dictionaries stand for: a dictionary may be larger than a unit."""
    for index, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            table = table.set_column(index, field.name, table.column(index).cast(value_type(field.type)))
    return table
