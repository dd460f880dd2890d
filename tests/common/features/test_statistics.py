"""Completed features against means and quantiles that numpy computes from the whole column."""

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pydantic
import pytest

from common.features.config import Features
from common.features.statistics import bucket_edges, complete_features, is_complete
from common.reader.files import DataError, Files, matching_files
from tests.support.encoded_rows import parse_features


def completed(folder: Path, columns: dict[str, Any], features: dict[str, Any], rows: int = 3) -> dict[str, Any]:
    """Write a table in row groups of `rows`, and return the completed features as JSON values."""
    pq.write_table(pa.table(columns), folder / "data.parquet", row_group_size=rows)
    found = complete_features(parse_features(features), matching_files(str(folder / "data.parquet")))
    values = {name: feature.model_dump(mode="json") for name, feature in found.items()}
    # A configuration with these values loads, and is complete.
    again = pydantic.TypeAdapter(Features).validate_json(json.dumps(values))
    assert is_complete(again)
    assert is_complete(parse_features(features)) == (again == parse_features(features))
    assert complete_features(again, Files((), "nothing is read")) == again == found
    return values


@pytest.mark.parametrize(
    ("values", "mean"),
    [
        (pa.array([1, None, 4, 7]), 4.0),
        (pa.array([True, False, None, True]), 2 / 3),
        (pa.array([Decimal("0.25"), None, Decimal("1.25")]), 0.75),
        (pa.array([0.5, np.nan, None, np.inf, -1e300, 1.5]), 1.0),
        (pa.array([2.0**24, 1.0, 1.0, 1.0], pa.float32()), (2**24 + 3) / 4),
    ],
)
def test_a_missing_number_is_replaced_by_the_mean_of_the_others(tmp_path: Path, values: pa.Array, mean: float) -> None:
    found = completed(tmp_path, {"x": values}, {"x": {"kind": "number"}})
    assert found["x"]["missing"] == pytest.approx(mean, rel=1e-15)


def test_what_the_configuration_states_is_kept(tmp_path: Path) -> None:
    features: dict[str, Any] = {
        "x": {"kind": "number", "missing": -1.0, "buckets": 2},
        "y": {"kind": "number", "column": "x", "buckets": 3, "edges": [0.0, 0.5]},
        "v": {"kind": "numbers", "missing": [1.0, 2.0], "length": 2},
        "flag": {"kind": "boolean", "column": "x"},
    }
    columns = {"x": [1.0, 2.0, 4.0], "v": [[0.0, 0.0]] * 3}
    found = completed(tmp_path, columns, features)
    assert (found["x"]["missing"], found["x"]["edges"]) == (-1.0, [1.0, 2.0, 4.0])
    assert (found["y"]["missing"], found["y"]["edges"]) == (pytest.approx(7 / 3), [0.0, 0.5])
    assert found["v"] == features["v"] | {"column": None, "indicator": False, "buckets": None, "edges": None}


def test_vectors_have_a_length_a_mean_and_edges_per_position(tmp_path: Path) -> None:
    vectors = pa.array([[1.0, 10.0], [3.0, None], None, [5.0, 30.0]], pa.list_(pa.float64(), 2))
    features = {"v": {"kind": "numbers", "buckets": 2}, "e": {"kind": "embedding", "column": "v"}}
    found = completed(tmp_path, {"v": vectors}, features)
    assert (found["v"]["length"], found["e"]["length"]) == (2, 2)
    assert found["v"]["missing"] == [3.0, 20.0]
    assert found["v"]["edges"] == [[1.0, 3.0, 5.0], [10.0, 30.0]]


def test_the_age_of_a_timestamp_has_a_mean_and_edges(tmp_path: Path) -> None:
    hours = np.array([0, 1, 2, 5], "timedelta64[h]") + np.datetime64("2024-01-01", "us")
    columns = {"seen": [hours[0]] * 4, "served": hours}
    age = {"before": "served", "unit": "hours", "buckets": 3}
    found = completed(tmp_path, columns, {"seen": {"kind": "timestamp", "age": age}})
    assert (found["seen"]["age"]["missing"], found["seen"]["age"]["edges"]) == (2.0, [0.0, 1.0, 2.0, 5.0])
    assert found["seen"]["hour_of_day"] is True


def test_a_column_without_any_number_is_replaced_by_0_with_a_warning(tmp_path: Path, caplog: Any) -> None:
    features = {"x": {"kind": "number", "buckets": 4}, "y": {"kind": "number"}}
    found = completed(tmp_path, {"x": pa.nulls(3), "y": [1.0, 2.0, 3.0]}, features)
    assert (found["x"]["missing"], found["x"]["edges"]) == (0.0, [0.0, 1.0])
    assert "all values of the feature x are missing" in caplog.text
    assert "feature y" not in caplog.text


@pytest.mark.parametrize(
    ("feature", "message"),
    [
        ({"kind": "numbers"}, r"column 'x' has no fixed length\. Set features\.x\.length"),
        ({"kind": "embedding", "column": "y"}, "no column 'y'"),
        ({"kind": "number", "column": "y"}, "no column 'y'"),
        ({"kind": "number"}, "column 'x': found list"),
    ],
)
def test_a_column_that_does_not_fit_is_an_error(tmp_path: Path, feature: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        completed(tmp_path, {"x": [[1.0], [2.0, 3.0]]}, {"x": feature})


def test_edges_of_a_large_table_come_from_a_sample_that_is_always_the_same(tmp_path: Path, caplog: Any) -> None:
    rng = np.random.default_rng(0)
    x = rng.exponential(size=1_100_000).astype(np.float32)
    pq.write_table(pa.table({"x": x}), tmp_path / "data.parquet", row_group_size=300_000)
    features = parse_features({"x": {"kind": "number", "buckets": 8}})
    found, again = (complete_features(features, matching_files(str(tmp_path))) for _ in range(2))
    assert found == again
    with caplog.at_level("INFO"):
        values = complete_features(features, matching_files(str(tmp_path)))["x"].model_dump()
    assert "a sample of 95.3%" in caplog.text
    assert values["missing"] == pytest.approx(x.mean(dtype=np.float64), rel=1e-12)
    expected = np.quantile(x, np.linspace(0, 1, 6))[1:-1]
    nearest = [min(values["edges"], key=lambda edge: abs(edge - quantile)) for quantile in expected]
    np.testing.assert_allclose(nearest, expected, rtol=0.01)


# --- Edges ---


def float32(*values: float) -> Any:
    return np.array(values, np.float32)


@pytest.mark.parametrize("buckets", [2, 3, 8, 48, 256])
@pytest.mark.parametrize("seed", range(4))
def test_edges_are_values_ascending_distinct_in_float32_and_not_too_many(buckets: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = [
        rng.normal(size=1000),
        np.where(rng.random(1000) < 0.97, 0, rng.exponential(1e4, 1000)),
        rng.integers(0, 20, 1000),
        1e8 + 100 * rng.random(1000),
    ][seed].astype(np.float32)
    edges = bucket_edges(values, buckets)
    rounded = np.array(edges, np.float32)
    assert 2 <= len(edges) <= buckets + 1
    assert (np.diff(rounded) > 0).all()
    assert set(rounded.tolist()) <= set(values.tolist())
    assert (rounded[0], rounded[-1]) == (values.min(), values.max())


def test_few_distinct_values_are_all_edges() -> None:
    assert bucket_edges(float32(3, 1, 2, 2, 2, 2, 0.1), 48) == [0.1, 1.0, 2.0, 3.0]


def test_a_column_that_is_mostly_zero_gets_edges_among_its_other_values() -> None:
    """Quantiles of the rows alone have 0 and the maximum only."""
    others = np.arange(1, 101)
    edges = bucket_edges(np.concatenate([np.zeros(9_900), others]).astype(np.float32), 10)
    assert len(edges) == 11
    assert sum(0 < edge < 100 for edge in edges) >= 8


def test_a_column_that_is_skewed_gets_edges_where_its_rows_are() -> None:
    """Quantiles of the distinct values alone ignore how often they occur."""
    values = np.concatenate([np.tile(np.arange(10), 1_000), np.arange(10, 10_000)]).astype(np.float32)
    edges = bucket_edges(values, 10)
    assert sum(edge < 10 for edge in edges) >= 3


@pytest.mark.parametrize(
    ("values", "edges"),
    [
        (float32(), [0.0, 1.0]),
        (float32(5, 5), [5.0, 10.0]),
        (float32(-0.5), [-0.5, 0.5]),
        (float32(-3.4e38, 3.4e38), [-1e38, 1e38]),
        (float32(3.4e38), [1e38, 2e38]),
        (np.array([1, 1 + 1e-12]).astype(np.float32), [1.0, 2.0]),
    ],
)
def test_columns_with_fewer_than_two_distinct_values_and_extreme_ones_have_edges(
    values: Any, edges: list[float]
) -> None:
    assert bucket_edges(values, 4) == pytest.approx(edges, rel=1e-6)
