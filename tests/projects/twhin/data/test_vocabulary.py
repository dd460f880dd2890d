from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.reader.files import DataError
from projects.twhin.data.vocabulary import read_vocabulary, write_vocabulary


@pytest.mark.parametrize("entities", [pa.array(["b", "", "ä"]), pa.array([7, -1, 2**62]), pa.array([], pa.string())])
def test_what_is_written_is_read(tmp_path, entities):
    write_vocabulary(tmp_path / "v.parquet", entities)
    assert read_vocabulary(tmp_path / "v.parquet") == entities


def test_rows_in_any_order(tmp_path):
    pq.write_table(
        pa.table({"index": pa.array([2, 0, 1], pa.int8()), "entity": ["c", "a", "b"], "more": [1, 2, 3]}),
        tmp_path / "v.parquet",
    )
    assert read_vocabulary(tmp_path / "v.parquet").to_pylist() == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        ({"entity": ["a"]}, "no column 'index'; a vocabulary has the columns entity and index"),
        ({"entity": [1.5], "index": [0]}, "column 'entity': double found, strings or integers expected"),
        ({"entity": ["a"], "index": ["0"]}, "column 'index': string found, integers expected"),
        ({"entity": ["a", None], "index": [0, 1]}, "row 1: column 'entity': null found"),
        ({"entity": ["a", "b"], "index": [None, 0]}, "row 0: column 'index': null found"),
        (
            {"entity": ["a", "b"], "index": [2, 0]},
            "column 'index': 2 found where 1 comes next; the 2 rows of a vocabulary have the indices from 0 to 1, "
            "each once",
        ),
        (
            {"entity": ["a", "b"], "index": [0, 0]},
            "column 'index': 0 found where 1 comes next; the 2 rows of a vocabulary have the indices from 0 to 1, "
            "each once",
        ),
        ({"entity": ["a", "b", "b"], "index": [0, 1, 2]}, "column 'entity': 'b' is there several times"),
    ],
)
def test_mistakes_are_told(tmp_path, columns: dict[str, Any], problem: str):
    path = tmp_path / "v.parquet"
    pq.write_table(pa.table(columns), path)
    with pytest.raises(DataError) as caught:
        read_vocabulary(path)
    assert str(caught.value) == f"{path}: {problem}"


def test_what_is_no_file_of_parquet(tmp_path):
    (tmp_path / "v.parquet").write_text("entity\tindex\n")
    for path in (tmp_path / "v.parquet", tmp_path / "none.parquet", tmp_path):
        with pytest.raises(DataError, match="can't be read as a vocabulary"):
            read_vocabulary(path)
