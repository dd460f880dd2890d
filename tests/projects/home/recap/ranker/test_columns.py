"""Checks the conversion of DataFrames, whose index predictions keep."""

import math
from typing import Any

import numpy as np
import pandas
import pyarrow as pa
import pytest

from common.errors import UserError
from projects.home.recap.ranker.columns import to_table, with_index


def scored(frame: Any) -> Any:
    """Return a DataFrame of predictions for another one."""
    scores = pa.table({"score": np.arange(len(frame), dtype=float)})
    return with_index(scores, to_table(frame)).to_pandas()


@pytest.mark.parametrize(
    "index",
    [
        None,
        pandas.RangeIndex(5, 11, 2),
        [7, 7, 3],
        pandas.Index(["a", "b", "c"], name="key"),
        pandas.MultiIndex.from_tuples([(1, "x"), (1, "y"), (2, "x")], names=["user", None]),
        pandas.to_datetime(["2024-01-01", "2024-01-03", "2024-01-02"], utc=True),
    ],
)
@pytest.mark.parametrize("names", [["a", "b"], [0, 1]])
def test_an_index_is_kept(index, names):
    frame = pandas.DataFrame(np.zeros((3, 2)), index=index, columns=names)
    found = scored(frame)
    assert list(found.columns) == ["score"]
    pandas.testing.assert_index_equal(found.index, frame.index, exact="equiv")


def test_a_filtered_frame_keeps_the_labels_of_its_rows():
    frame = pandas.DataFrame({"age": [1.0, 5.0, 9.0]})
    assert scored(frame[frame.age > 2]).index.tolist() == [1, 2]


def test_nan_in_vectors_stays_nan_and_a_missing_vector_is_null():
    vectors = [np.array([1, np.nan], np.float32), None, [math.inf, 2.0]]
    objects = np.empty(3, object)
    objects[:] = vectors
    for columns in (pandas.DataFrame({"v": vectors}), {"v": pandas.Series(vectors)}, {"v": objects}):
        first, *others = to_table(columns)["v"].to_pylist()
        assert first[0] == 1
        assert math.isnan(first[1])
        assert others == [None, [math.inf, 2.0]]


@pytest.mark.parametrize("kind", [pa.list_(pa.float32()), pa.large_list(pa.float64()), pa.list_(pa.float64(), 2)])
def test_slices_of_vectors_are_columns(kind):
    """A DataFrame of Arrow columns has slices of them."""
    vectors = pandas.Series(pandas.arrays.ArrowExtensionArray(pa.array([[1, 2], None, [3, None], [4, 5]], kind)))
    for begin, end in ((0, 4), (1, 3), (2, 3), (3, 4), (4, 4)):
        frame = pandas.DataFrame({"v": vectors.iloc[begin:end]})
        found = [None if each is None else str(each) for each in to_table(frame)["v"].to_pylist()]
        assert found == ["[1.0, 2.0]", None, "[3.0, nan]", "[4.0, 5.0]"][begin:end]


def test_null_in_a_list_stays_null():
    """Only pandas has no difference between null and NaN."""
    columns = {"v": [[1.0, None], None]}
    for form in (columns, pa.table(columns), pa.record_batch(columns)):
        assert to_table(form).to_pydict() == columns


def test_series_and_categories_are_columns():
    columns = {"c": pandas.Categorical(["u", None, "v"]), "s": pandas.Series([1, None, 3])}
    assert to_table(columns).to_pydict() == {"c": ["u", None, "v"], "s": [1.0, None, 3.0]}


def test_columns_of_one_name_are_refused():
    with pytest.raises(UserError, match="cannot use a DataFrame as columns: Duplicate column names found"):
        to_table(pandas.DataFrame(np.zeros((2, 2)), columns=["a", "a"]))
