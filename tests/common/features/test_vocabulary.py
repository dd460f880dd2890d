from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.features.config import Features
from common.features.hashing import hash_integers, hash_strings
from common.features.vocabulary import read_vocabularies, read_vocabulary, write_vocabulary
from common.reader.files import DataError
from core.config import BaseConfig


def write(folder: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), folder / "v.parquet")
    return folder / "v.parquet"


def error_of(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        read_vocabulary(path)
    return str(caught.value)


@pytest.mark.parametrize("size", [0, 1, 2, 1000, 20_000])
def test_values_have_the_rows_after_their_indices(tmp_path, size):
    generator = np.random.default_rng(size)
    values = generator.permutation(10 * size)[:size] - 3 * size
    write_vocabulary(tmp_path / "v.parquet", pa.array(values))
    vocabulary = read_vocabulary(tmp_path / "v.parquet")
    rows = {int(value): index + 2 for index, value in enumerate(values)}
    asked = np.arange(-4 * size, 8 * size + 1)
    assert vocabulary.rows(hash_integers(asked)).tolist() == [rows.get(int(value), 1) for value in asked]
    assert len(vocabulary) == size


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())]
)
def test_strings_in_any_order_of_the_file(tmp_path, kind):
    path = write(tmp_path, value=pa.array(["b", "é", "a"]).cast(kind), index=[2, 0, 1], count=[7, 8, 9])
    vocabulary = read_vocabulary(path)
    assert vocabulary.values.to_pylist() == ["é", "a", "b"]
    assert vocabulary.counts is not None
    assert vocabulary.counts.tolist() == [8, 9, 7]
    assert vocabulary.rows(hash_strings(pa.array(["a", "b", "c", "é"]))).tolist() == [3, 4, 1, 2]


def test_the_digest_depends_on_the_content_alone(tmp_path):
    first = read_vocabulary(write(tmp_path, value=["a", "b"], index=[0, 1]))
    same = write(tmp_path, index=pa.array([1, 0], pa.int8()), value=pa.array(["b", "a"], pa.large_string()))
    assert read_vocabulary(same).digest == first.digest
    others: list[dict[str, Any]] = [
        {"value": ["a", "b"], "index": [1, 0]},
        {"value": ["a", "c"], "index": [0, 1]},
        {"value": ["a", "b"], "index": [0, 1], "count": [1, 1]},
        {"value": ["a", "b"], "index": [0, 1], "count": [1, 2]},
        {"value": [1, 2], "index": [0, 1]},
    ]
    assert len({first.digest, *(read_vocabulary(write(tmp_path, **each)).digest for each in others)}) == 6


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        ({"value": ["a"]}, "no column 'index', or more than one; columns found: value"),
        ({"value": ["a", None], "index": [0, 1]}, "row 1: column 'value': found null"),
        ({"value": ["a", "b"], "index": [0, None]}, "row 1: column 'index': found null"),
        ({"value": ["a", "b", "a"], "index": [0, 1, 2]}, "column 'value': 'a' occurs more than once"),
        ({"value": [1.5], "index": [0]}, "column 'value': found double, expected strings or integers"),
        ({"value": [b"a"], "index": [0]}, "column 'value': found binary, expected strings or integers"),
        ({"value": ["a"], "index": [0.0]}, "column 'index': found double, expected integers"),
        ({"value": ["a", "b"], "index": [0, 2]}, "column 'index': found 2, but 1 is the next index"),
        ({"value": ["a", "b"], "index": [0, 0]}, "column 'index': found 0, but 1 is the next index"),
        ({"value": ["a"], "index": [0], "count": [-1]}, "row 0: column 'count': found -1, but counts must be"),
        ({"value": ["a"], "index": [0], "count": [0.5]}, "column 'count': found double, expected integers"),
        (
            {"value": pa.array([1, 2**63], pa.uint64()), "index": [0, 1]},
            "row 1: column 'value': found 9223372036854775808, but integers must be below 2^63",
        ),
    ],
)
def test_wrong_content(tmp_path, columns, problem):
    path = write(tmp_path, **columns)
    assert error_of(path).startswith(f"{path}: {problem}")


def test_a_larger_vocabulary_comes_later(tmp_path):
    path = write(tmp_path, value=np.arange(100_001), index=np.arange(100_001))
    assert "100,001 values is larger than 100,000" in error_of(path)
    assert "come later" in error_of(path)


def test_file_that_is_missing_or_no_parquet(tmp_path):
    assert "cannot read this file as a vocabulary" in error_of(tmp_path / "none.parquet")
    (tmp_path / "text").write_text("value,index")
    assert "cannot read this file as a vocabulary" in error_of(tmp_path / "text")


class Config(BaseConfig):
    features: Features


def test_each_vocabulary_is_read_once(tmp_path):
    path = str(write(tmp_path, value=["a"], index=[0]))
    features = Config.model_validate(
        {
            "features": {
                "a": {"kind": "category", "vocabulary": path},
                "b": {"kind": "categories", "vocabulary": path},
                "c": {"kind": "number"},
            }
        }
    ).features
    assert list(read_vocabularies(features)) == [path]
