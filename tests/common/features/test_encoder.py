"""Encodes features of all kinds, and refuses wrong columns at opening. The tests of kinds/ cover their values."""

import pyarrow as pa
import pytest

from tests.support.encoded_tables import check, error_of


def test_columns_of_nulls_alone_are_missing(tmp_path):
    table = pa.table({name: pa.nulls(4) for name in "abcdefg"})
    features = {
        "a": {"kind": "number", "missing": 3.0},
        "b": {"kind": "numbers", "length": 2, "missing": [1.0, 2.0]},
        "c": {"kind": "boolean"},
        "d": {"kind": "category", "num_values": 3},
        "e": {"kind": "categories", "hash_buckets": 5, "num_hashes": 2, "max_length": 3},
        "f": {"kind": "timestamp"},
        "g": {"kind": "embedding", "length": 2},
    }
    check(tmp_path, table, features)


def test_a_boolean_may_have_the_name_of_an_indicator_that_a_number_does_not_have(tmp_path):
    table = pa.table({"x": [1.0, None, 2.0], "x.missing": [True, True, False]})
    boolean, number = {"x.missing": {"kind": "boolean"}}, {"x": {"kind": "number", "missing": 0.0}}
    check(tmp_path, table, boolean | number)
    check(tmp_path, table, number | boolean)


@pytest.mark.parametrize(
    ("values", "feature", "problem"),
    [
        (["a"], {"kind": "number"}, "found string, expected integers, floats, decimals or booleans"),
        ([[1.0]], {"kind": "number"}, "found list<element: double>, expected integers, floats, decimals or booleans"),
        ([1.0], {"kind": "numbers", "length": 2}, "found double, expected lists of 2 integers, floats, decimals or"),
        ([["a"]], {"kind": "embedding", "length": 2}, "found list<element: string>, expected lists of 2 integers"),
        (["true"], {"kind": "boolean"}, "found string, expected booleans, or numbers that are 0 or 1"),
        ([b"a"], {"kind": "category", "hash_buckets": 3}, "found binary, expected strings or integers"),
        ([{"a": 1}], {"kind": "category", "hash_buckets": 3}, "found struct<a: int64>, expected strings or integers"),
        ([["a"]], {"kind": "category", "hash_buckets": 3}, "found list<element: string>, expected strings or integers"),
        (["a"], {"kind": "category", "num_values": 3}, "found string, expected integers, because num_values is set"),
        (["a"], {"kind": "categories", "num_values": 3}, "found string, expected lists of strings or integers"),
        (
            [["a"]],
            {"kind": "categories", "num_values": 3},
            "found list<element: string>, expected lists of integers, because num_values is set",
        ),
        ([[["a"]]], {"kind": "categories", "hash_buckets": 3}, "expected lists of strings or integers"),
        (pa.array([b"ab"], pa.binary(2)), {"kind": "categories", "hash_buckets": 3}, "neither dtype nor width"),
        (pa.array([b"ab"], pa.binary(2)), {"kind": "embedding", "length": 2}, "neither dtype nor width"),
        (["2026-01-01"], {"kind": "timestamp"}, "found string, expected timestamps, dates, or integers with a unit"),
        ([1], {"kind": "timestamp"}, "expected timestamps or dates, because unit is null. Set unit for integers"),
        (
            pa.array([1], pa.timestamp("ms")),
            {"kind": "timestamp", "unit": "ms"},
            "found timestamp[ms], whose unit is known, but unit is ms. Remove unit",
        ),
        (
            pa.array([1], pa.timestamp("ms")),
            {"kind": "timestamp", "age": {"before": "x", "before_unit": "ms"}},
            "found timestamp[ms], whose unit is known, but age.before_unit is ms. Remove age.before_unit",
        ),
    ],
)
def test_a_column_of_a_wrong_type_is_an_error_at_opening(tmp_path, values, feature, problem):
    message = error_of(tmp_path, pa.table({"x": values}), {"x": feature})
    assert message.startswith("column 'x': found ")
    assert problem in message


def test_missing_and_repeated_columns_are_errors_at_opening(tmp_path):
    table = pa.table({"a": [1], "b": [2]})
    expected = "no column 'x', or more than one; columns found: a, b"
    assert error_of(tmp_path, table, {"x": {"kind": "number"}}) == expected
    twice = pa.Table.from_arrays([pa.array([1])] * 2, names=["x", "x"])
    assert error_of(tmp_path, twice, {"x": {"kind": "number"}}).startswith("no column 'x', or more than one")
