"""Compares the selection with a loop over rows in plain Python."""

import itertools
import math
import random
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from common.features.group_encoder import GROUPS, GroupEncoder
from common.reader.files import DataError
from projects.home.recap.predict.top_k import TopK, best_of_unit, best_of_units, check_group_by

NAN = float("nan")


def loop(rows: list[dict[str, Any]], k: int, group_by: str | None) -> list[tuple[Any, int, int]]:
    """Return group, rank and row id of the best rows, given rows with a score and an id, in the input's order."""
    groups: dict[Any, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(None if group_by is None else row[group_by], []).append(row)
    best = []
    for group in sorted(groups, key=lambda value: (value is not None, value or "")):
        numbers = [row for row in groups[group] if not math.isnan(row["score"])]
        of_group = sorted(numbers, key=lambda row: -row["score"])
        of_group += [row for row in groups[group] if math.isnan(row["score"])]
        best += [(group, rank, row["id"]) for rank, row in enumerate(of_group[:k], start=1)]
    return best


def selected(tables: list[pa.Table], top_k: TopK) -> list[tuple[Any, int, int]]:
    units = [best_of_unit(table, top_k, "unit")[1] for table in tables]
    table, ranks = best_of_units(units, top_k)
    groups = [None] * len(table) if top_k.group_by is None else table.column(top_k.group_by).to_pylist()
    return list(zip(groups, ranks.tolist(), table.column("id").to_pylist(), strict=True))


def random_rows(seed: int, num_rows: int, num_groups: int) -> list[dict[str, Any]]:
    """Rows with few distinct scores, so that many are equal, some NaN, and some rows without a group."""
    numbers = random.Random(seed)
    return [
        {
            "user": None if (user := numbers.randrange(num_groups + 1)) == num_groups else f"user {user}",
            "score": numbers.choice([0.0, -0.0, 0.25, -1.5, 1e300, math.inf, -math.inf, NAN]),
            "id": row,
        }
        for row in range(num_rows)
    ]


@pytest.mark.parametrize("k", [1, 2, 3, 1000])
@pytest.mark.parametrize("group_by", ["user", None])
@pytest.mark.parametrize("units", [1, 2, 7])
def test_the_selection_is_that_of_a_loop(k, group_by, units):
    rows = random_rows(seed=units, num_rows=200, num_groups=20)
    bounds = np.linspace(0, len(rows), units + 1).astype(int)
    tables = [pa.Table.from_pylist(rows[begin:end]) for begin, end in itertools.pairwise(bounds)]
    assert selected(tables, TopK(k, "score", group_by)) == loop(rows, k, group_by)


TYPES = [
    (pa.string(), ["b", "a", "", None, "a", "b"], [None, "", "a", "a", "b", "b"]),
    (pa.large_string(), ["é", "z", "z", None, "é", "x" * 50], [None, "x" * 50, "z", "z", "é", "é"]),
    (pa.dictionary(pa.int8(), pa.string()), ["b", None, "a", None, "a", "b"], [None, None, "a", "a", "b", "b"]),
    (pa.int64(), [5, -1, None, 2**63 - 1, -(2**63), 5], [None, -(2**63), -1, 5, 5, 2**63 - 1]),
    (pa.uint8(), [5, 0, None, 255, 0, 5], [None, 0, 0, 5, 5, 255]),
    (pa.bool_(), [True, False, None, True, False, True], [None, False, False, True, True, True]),
    (pa.null(), [None] * 6, [None] * 6),
]


@pytest.mark.parametrize(("kind", "values", "expected"), TYPES, ids=[str(each[0]) for each in TYPES])
def test_groups_of_all_types_are_sorted_by_their_values(kind, values, expected):
    table = pa.table({"user": pa.array(values, kind), "score": np.arange(6.0), "id": range(6)})
    assert [group for group, _, _ in selected([table[:3], table[3:]], TopK(9, "score", "user"))] == expected


def test_floats_are_groups_if_they_are_integers_and_nan_is_no_group():
    table = pa.table({"user": [2.0, NAN, -0.0, 0.0, None, 2.0], "score": np.arange(6.0), "id": range(6)})
    assert [row for _, _, row in selected([table[:3], table[3:]], TopK(1, "score", "user"))] == [4, 3, 5]
    with pytest.raises(DataError, match=r"unit: column 'user': .* but --group_by needs whole numbers"):
        best_of_unit(pa.table({"user": [0.5], "score": [1.0]}), TopK(1, "score", "user"), "unit")


def test_files_may_differ_in_whether_nulls_are_allowed():
    def table(nullable: bool, users: list[int]) -> pa.Table:
        fields = [pa.field("user", pa.int64(), nullable=nullable), ("score", pa.float64()), ("id", pa.int64())]
        return pa.table([users, [1.0, 2.0], users], schema=pa.schema(fields))

    assert selected([table(False, [1, 2]), table(True, [2, 3])], TopK(9, "score", "user")) == [
        (1, 1, 1),
        (2, 1, 2),
        (2, 2, 2),
        (3, 1, 3),
    ]


def test_rows_of_a_unit_are_sorted_by_the_hash_of_the_group_and_keep_all_columns():
    rows = random_rows(seed=0, num_rows=100, num_groups=30)
    table = pa.Table.from_pylist(rows).append_column("vector", pa.array([[float(i)] * 3 for i in range(100)]))
    hashes, best = best_of_unit(table, TopK(2, "score", "user"), "unit")
    assert (np.diff(hashes.astype(object)) >= 0).all()
    assert best.schema == table.schema
    users = best.column("user").to_pylist()
    assert len({hash_: users[i] for i, hash_ in enumerate(hashes.tolist())}) == len(set(users))
    assert best.column("vector").to_pylist() == [[float(i)] * 3 for i in best.column("id").to_pylist()]


def test_groups_with_equal_hashes_stay_apart(monkeypatch):
    """Replaces the hash, because strings with equal ones are hard to find."""
    monkeypatch.setattr(GroupEncoder, "encode", lambda *given: {GROUPS: np.zeros(len(given[1]), np.int64)})
    rows = random_rows(seed=5, num_rows=100, num_groups=9)
    table = pa.Table.from_pylist(rows)
    assert selected([table[:60], table[60:]], TopK(2, "score", "user")) == loop(rows, 2, "user")


@pytest.mark.parametrize(
    ("kind", "found"),
    [(pa.list_(pa.int64()), "list<"), (pa.timestamp("us"), "timestamp"), (pa.binary(), "binary")],
)
def test_a_column_that_cannot_be_a_group_is_an_error(kind, found):
    with pytest.raises(ValueError, match=rf"column 'user': found {found}.* --group_by needs a column of strings or in"):
        check_group_by(pa.schema({"user": kind}), "user")


def test_a_missing_column_of_groups_is_an_error():
    with pytest.raises(ValueError, match=r"no column 'user', .*--group_by names it; columns found: id"):
        check_group_by(pa.schema({"id": pa.int64()}), "user")
