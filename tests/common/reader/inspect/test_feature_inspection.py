import collections
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.features.vocabulary import write_vocabulary
from common.reader.files import matching_files
from common.reader.inspect import feature_inspection
from common.reader.inspect.feature_inspection import FeatureInspection, inspect_features
from tests.support.encoded_rows import encode_row, parse_features


def inspected(folder: Path, table: pa.Table, features: dict[str, Any], row_group_size: int = 3) -> FeatureInspection:
    path = folder / "data.parquet"
    pq.write_table(table, path, row_group_size=row_group_size)
    progress: list[int] = []
    inspection = inspect_features(matching_files(str(path)), parse_features(features), progress.append)
    assert sum(progress) in (0, len(table))
    return inspection


def test_missing_values_of_every_kind(tmp_path):
    table = pa.table(
        {
            "number": [1.0, None, float("nan"), float("inf")],
            "numbers": pa.array([[1.0, None], None, [1.0, 2.0], [3.0, float("nan")]], pa.list_(pa.float64(), 2)),
            "boolean": [True, None, False, None],
            "day": pa.array([0, None, 1, 2], pa.date32()),
            "later": pa.array([0, 1, None, 2], pa.date32()),
        }
    )
    features = {
        "number": {"kind": "number", "buckets": 4},
        "numbers": {"kind": "numbers"},
        "boolean": {"kind": "boolean"},
        "day": {"kind": "timestamp", "hour_of_day": False, "age": {"before": "later"}},
        "age": {
            "kind": "timestamp",
            "column": "day",
            "hour_of_day": False,
            "day_of_week": False,
            "age": {"before": "later"},
        },
        "embedding": {"kind": "embedding", "column": "numbers"},
    }
    inspection = inspected(tmp_path, table, features)
    assert inspection.errors.count == 0
    assert inspection.num_rows == 4
    found = {name: (counts.values, counts.missing) for name, counts in inspection.features.items()}
    assert found == {
        "number": (4, 3),
        "numbers": (8, 4),
        "boolean": (4, 2),
        "day": (4, 1),
        "age": (4, 2),
        "embedding": (4, 1),
    }


def test_a_feature_may_have_the_name_of_an_indicator_that_another_does_not_have(tmp_path):
    table = pa.table({"x": [1.0, None, 2.0], "x.missing": [True, None, None], "y": [0, 1, 1]})
    features = {
        "x": {"kind": "number"},
        "x.missing": {"kind": "boolean"},
        "y.missing": {"kind": "boolean", "column": "y"},
        "y": {"kind": "category", "num_values": 2},
    }
    inspection = inspected(tmp_path, table, features)
    assert inspection.errors.count == 0
    found = {name: (counts.values, counts.missing) for name, counts in inspection.features.items()}
    assert found == {"x": (3, 1), "x.missing": (3, 2), "y.missing": (3, 0), "y": (3, 0)}


def test_unknown_values_and_cut_lists(tmp_path):
    write_vocabulary(tmp_path / "v.parquet", pa.array(["a", "b"]))
    path = str(tmp_path / "v.parquet")
    table = pa.table(
        {
            "c": ["a", "x", None, "y", "x", "z", "w"],
            "n": [0, 1, 2, -1, None, 5, 1],
            "l": [["x", "a", "b"], ["a"], None, [], [None, "q"], ["a", "a", "a", "p"], ["q", "r"]],
        }
    )
    features = {
        "c": {"kind": "category", "vocabulary": path},
        "n": {"kind": "category", "num_values": 2},
        "l": {"kind": "categories", "vocabulary": path, "max_length": 2},
    }
    found = inspected(tmp_path, table, features).features
    assert (found["c"].values, found["c"].missing, found["c"].unknown) == (7, 1, 5)
    assert found["c"].examples == ["'x'", "'y'", "'z'"]
    assert (found["n"].values, found["n"].missing, found["n"].unknown) == (7, 1, 3)
    assert found["n"].examples == ["2", "-1", "5"]
    # The last two values of each list; the null list is one missing value.
    assert (found["l"].values, found["l"].missing, found["l"].unknown) == (10, 2, 4)
    assert found["l"].examples == ["'q'", "'p'", "'r'"]
    assert (found["l"].lists, found["l"].longest, found["l"].cut) == (6, 4, 2)


@pytest.mark.parametrize("num_hashes", [1, 2])
@pytest.mark.parametrize("lists", [False, True])
def test_collisions(tmp_path, num_hashes, lists):
    generator = np.random.default_rng(num_hashes)
    values = [None if value == 0 else f"value {value}" for value in generator.integers(0, 60, 300).tolist()]
    column = pa.array(values)
    features = {"c": {"kind": "category", "hash_buckets": 20, "num_hashes": num_hashes}}
    rows = {value: encode_row({"c": value}, parse_features(features), {})["ids"] for value in values if value}
    if lists:
        column = pa.ListArray.from_arrays([*range(0, 300, 3), 300], column)
        features = {"c": {**features["c"], "kind": "categories", "max_length": 1}}
    counts = inspected(tmp_path, pa.table({"c": column}), features, 30).features["c"]
    assert counts.unknown is None
    assert counts.collisions is not None
    assert len(counts.collisions.hashes) == len(rows)
    times = collections.Counter(map(tuple, rows.values()))
    assert counts.collisions.num_shared == sum(count for count in times.values() if count > 1) > 0


def test_integers_and_dictionaries_are_counted_once_each(tmp_path):
    table = pa.table({"i": [1, 2, None, 1, 3, 3, 0], "f": [0.0, 1.0, None, float("nan"), 1.0, 2.0, 5.0]})
    table = table.append_column("d", pa.array(["a", "b", None, "b", "a", "c", "a"]).dictionary_encode())
    features = {name: {"kind": "category", "hash_buckets": 1000} for name in "ifd"}
    found = inspected(tmp_path, table, features).features
    distinct = {name: len(counts.collisions.hashes) for name, counts in found.items() if counts.collisions}
    assert distinct == {"i": 4, "f": 4, "d": 3}


def test_memory_for_distinct_values_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(feature_inspection, "MOST_DISTINCT", 10)
    features = {"c": {"kind": "category", "hash_buckets": 1000}}
    collisions = inspected(tmp_path, pa.table({"c": range(30)}), features, 7).features["c"].collisions
    assert collisions is not None
    assert len(collisions.hashes) == len(collisions.buckets) == 10
    assert not collisions.are_all
    collisions = inspected(tmp_path, pa.table({"c": [*range(10)] * 3}), features, 7).features["c"].collisions
    assert collisions is not None
    assert collisions.are_all


def test_a_wrong_column_and_wrong_rows_are_errors(tmp_path):
    table = pa.table({"x": ["a"], "b": [1]})
    inspection = inspected(tmp_path, table, {"x": {"kind": "number"}})
    assert inspection.errors.kept == [
        f"{tmp_path / 'data.parquet'}: column 'x': found string, expected integers, floats, decimals or booleans"
    ]
    table = pa.table({"b": [0, 1, 1, 5, 0, 0, 7]})
    inspection = inspected(tmp_path, table, {"b": {"kind": "boolean"}})
    assert [message.split(": ")[1] for message in inspection.errors.kept] == [
        "row group 1, row 0 (both counted from 0)",
        "row group 2, row 0 (both counted from 0)",
    ]
    assert inspection.num_rows == 3
