import datetime
import decimal
import itertools
import struct
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import xxhash

from projects.home.recap.tools.prepare.row_hash import row_hashes, split_numbers

UTC = datetime.UTC


def chained(value: Any, seed: int) -> int:
    """The hash of a value with a seed, in plain Python."""
    if value is None or value != value:
        return xxhash.xxh64_intdigest(struct.pack("<q", 0x6E756C6C), seed)
    if isinstance(value, str):
        return xxhash.xxh64_intdigest(value.encode(), seed)
    if isinstance(value, list):
        seed = xxhash.xxh64_intdigest(struct.pack("<q", len(value)), seed)
        for element in value:
            seed = chained(element, seed)
        return seed
    whole = not isinstance(value, float) or (value.is_integer() and abs(value) < 2**63)
    return xxhash.xxh64_intdigest(struct.pack("<q", int(value)) if whole else struct.pack("<d", value), seed)


def test_the_hash_of_a_row_chains_those_of_its_values():
    table = {
        "numbers": [1, None, -3, 2**62],
        "floats": [0.5, float("nan"), 1e300, -0.0],
        "texts": ["ABC", "", None, "a text of more than thirty-two bytes, ü"],
        "lists": [["a", None], [], None, ["b", "c", "d"]],
        "vectors": [[0.1, 2.0], [1.0], [], None],
        "booleans": [True, False, None, True],
    }
    columns = [pa.array(values) for values in table.values()]
    expected = []
    for row in zip(*table.values(), strict=True):
        value = 42
        for cell in row:
            value = chained(cell, value)
        expected.append(value)
    assert row_hashes(columns).tolist() == expected
    for begin, end in itertools.combinations(range(5), 2):
        assert row_hashes([column[begin:end] for column in columns]).tolist() == expected[begin:end]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (pa.array([3, None]), pa.array([3.0, None])),
        (pa.array([3, None]), pa.array([3.0, float("nan")])),
        (pa.array([3], pa.int8()), pa.array([3], pa.uint64())),
        (pa.array([0.0]), pa.array([-0.0])),
        (pa.array([1.5]), pa.array([decimal.Decimal("1.50")])),
        (pa.array([True, False]), pa.array([1, 0])),
        (pa.array(["a"]), pa.array(["a"], pa.large_string())),
        (pa.array([[1, 2]]), pa.array([[1, 2]], pa.list_(pa.float64(), 2))),
        (pa.array([datetime.date(2026, 1, 2)]), pa.array([datetime.datetime(2026, 1, 2)], pa.timestamp("ns"))),
        (
            pa.array([datetime.datetime(2026, 1, 2, 3)], pa.timestamp("s")),
            pa.array([datetime.datetime(2026, 1, 2, 3, tzinfo=UTC)], pa.timestamp("us", "UTC")),
        ),
    ],
)
def test_equal_values_of_different_types_have_the_same_hash(one, other):
    assert row_hashes([one]).tolist() == row_hashes([other]).tolist()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([["a"], [None]], [[None], ["a"]]),
        ([["ab"], ["c"]], [["a"], ["bc"]]),
        ([[""], ["a"]], [[None], ["a"]]),
        ([[[1], [2]]], [[[1, 2], []]]),
        ([[0.1]], [[0.2]]),
        ([[[None]]], [[[]]]),
    ],
)
def test_different_rows_have_different_hashes(one, other):
    assert row_hashes([pa.array(values) for values in one])[0] != row_hashes([pa.array(values) for values in other])[0]


def test_splits_are_ranges_of_the_hash():
    hashes = np.array([0, 2**63 - 1, 2**63, 3 * 2**62 - 1, 3 * 2**62, 2**64 - 1], np.uint64)
    assert split_numbers(hashes, (0.5, 0.25, 0.25)).tolist() == [0, 0, 1, 1, 2, 2]


def test_splits_have_their_shares_and_do_not_depend_on_the_remainder():
    hashes = row_hashes([pa.array(np.arange(100_000))])
    splits = split_numbers(hashes, (0.8, 0.1, 0.1))
    assert np.bincount(splits) / 100_000 == pytest.approx([0.8, 0.1, 0.1], abs=0.005)
    remainders = hashes[splits == 1] % np.uint64(10)
    assert np.bincount(remainders.astype(int)) / len(remainders) == pytest.approx([0.1] * 10, abs=0.015)
