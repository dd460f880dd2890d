"""Compares merges of partitions with a selection from all rows."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from projects.home.recap.predict.top_k import TopK, best_of_unit
from projects.home.recap.predict.top_k_files import merge_partition, num_partitions, write_best

UNITS, ROWS, USERS = 5, 400, 60


@pytest.fixture
def table() -> pa.Table:
    numbers = np.random.default_rng(0)
    users = numbers.integers(0, USERS, UNITS * ROWS)
    return pa.table(
        {
            "item": np.arange(UNITS * ROWS),
            "user": [f"user {user}" if user else None for user in users],
            "score": numbers.integers(0, 10, UNITS * ROWS) / 7,
        }
    )


def expected(table: pa.Table, k: int, group_by: str | None) -> list[dict[str, Any]]:
    """The columns of the output, by a stable sort of all rows in Python."""
    groups: dict[Any, list[dict[str, Any]]] = {}
    for row in table.to_pylist():
        groups.setdefault(row[group_by] if group_by else None, []).append(row)
    return [
        {**({group_by: group} if group_by else {}), "rank": rank, **row}
        for group, rows in groups.items()
        for rank, row in enumerate(sorted(rows, key=lambda row: -row["score"])[:k], start=1)
    ]


def written(table: pa.Table, top_k: TopK, directory, size: int = ROWS):
    paths = []
    for begin in range(0, len(table), size):
        paths.append(directory / f"unit-{begin:05d}.arrow")
        write_best(paths[-1], *best_of_unit(table[begin : begin + size], top_k, "unit"))
    return paths


@pytest.mark.parametrize("partitions", [1, 2, 7])
@pytest.mark.parametrize("chunk_bytes", [1, 3000, 2**30])
@pytest.mark.parametrize("k", [1, 5, 10**6])
def test_partitions_have_together_the_best_rows_of_each_group(table, tmp_path, partitions, chunk_bytes, k):
    top_k = TopK(k, "score", "user")
    paths = written(table, top_k, tmp_path)
    parts = [merge_partition(paths, each, partitions, top_k, chunk_bytes) for each in range(partitions)]
    assert all(part.column_names == ["user", "rank", "item", "score"] for part in parts)
    found = [row for part in parts for row in part.to_pylist()]
    assert sorted(found, key=str) == sorted(expected(table, k, "user"), key=str)
    assert all(0 < len(part) < len(found) for part in parts) or partitions == 1
    for part in parts:
        keys = [(row["user"] is not None, row["user"] or "", row["rank"]) for row in part.to_pylist()]
        assert keys == sorted(keys)


def test_without_groups_the_best_of_all_rows_are_one_partition(table, tmp_path):
    top_k = TopK(37, "score")
    paths = written(table, top_k, tmp_path)
    assert num_partitions(paths, top_k, partition_bytes=1) == 1
    merged = merge_partition(paths, 0, 1, top_k, chunk_bytes=1)
    assert merged.column_names == ["rank", "item", "user", "score"]
    assert merged.to_pylist() == expected(table, 37, None)


def test_the_number_of_partitions_bounds_their_size(table, tmp_path):
    top_k = TopK(10**6, "score", "user")
    paths = written(table, top_k, tmp_path)
    size = sum(path.stat().st_size for path in paths)
    assert num_partitions(paths, top_k, size) == 1
    assert num_partitions(paths, top_k, size - 1) == 2
    partitions = num_partitions(paths, top_k, size // 10)
    assert partitions in (10, 11)
    sizes = [len(merge_partition(paths, each, partitions, top_k)) for each in range(partitions)]
    assert sum(sizes) == UNITS * ROWS
    assert max(sizes) < 3 * UNITS * ROWS / partitions


def test_one_group_with_all_rows_takes_k_rows_of_each_unit(table, tmp_path):
    one = table.set_column(1, "user", pa.array(["the same"] * len(table)))
    top_k = TopK(3, "score", "user")
    paths = written(one, top_k, tmp_path)
    parts = [merge_partition(paths, each, 4, top_k) for each in range(4)]
    assert sorted(map(len, parts)) == [0, 0, 0, 3]
    assert next(part for part in parts if len(part)).to_pylist() == expected(one, 3, "user")
    assert {part.schema for part in parts} == {parts[0].schema}
