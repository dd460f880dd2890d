from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.reader.files import DataError
from projects.twhin.data.vocabulary import read_vocabulary, write_vocabulary
from tests.support.damage import overwrite_page


@pytest.mark.parametrize("entities", [pa.array(["b", "", "ä"]), pa.array([7, -1, 2**62]), pa.array([], pa.string())])
def test_reading_returns_the_written_entities(tmp_path, entities):
    write_vocabulary(tmp_path / "v.parquet", entities)
    assert read_vocabulary(tmp_path / "v.parquet") == entities


def test_rows_may_be_in_any_order(tmp_path):
    pq.write_table(
        pa.table({"index": pa.array([2, 0, 1], pa.int8()), "entity": ["c", "a", "b"], "more": [1, 2, 3]}),
        tmp_path / "v.parquet",
    )
    assert read_vocabulary(tmp_path / "v.parquet").to_pylist() == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        ({"entity": ["a"]}, "no column 'index'"),
        ({"entity": [1.5], "index": [0]}, "column 'entity': found double"),
        ({"entity": ["a"], "index": ["0"]}, "column 'index': found string"),
        ({"entity": ["a", None], "index": [0, 1]}, "row 1: column 'entity': found null"),
        ({"entity": ["a", "b"], "index": [None, 0]}, "row 0: column 'index': found null"),
        (
            {"entity": ["a", "b"], "index": [2, 0]},
            "column 'index': found 2, but 1 is the next index",
        ),
        (
            {"entity": ["a", "b"], "index": [0, 0]},
            "column 'index': found 0, but 1 is the next index",
        ),
        ({"entity": ["a", "b", "b"], "index": [0, 1, 2]}, "column 'entity': 'b' occurs more than once"),
    ],
)
def test_bad_vocabularies_are_data_errors(tmp_path, columns: dict[str, Any], problem: str):
    path = tmp_path / "v.parquet"
    pq.write_table(pa.table(columns), path)
    with pytest.raises(DataError) as caught:
        read_vocabulary(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert problem in str(caught.value)


def test_an_unreadable_vocabulary_is_a_data_error(tmp_path):
    (tmp_path / "v.parquet").write_text("entity\tindex\n")
    for path in (tmp_path / "v.parquet", tmp_path / "none.parquet", tmp_path):
        with pytest.raises(DataError, match=f"{path}: .*vocabulary"):
            read_vocabulary(path)


@pytest.mark.parametrize("column", ["entity", "index"])
def test_an_overwritten_page_is_an_error(tmp_path, column):
    write_vocabulary(path := tmp_path / "v.parquet", pa.array([7, -1, 2**62]))
    overwrite_page(path, column)
    with pytest.raises(DataError, match=f"^{path}: cannot read this file as a vocabulary: "):
        read_vocabulary(path)
