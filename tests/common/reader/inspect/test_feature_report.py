import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from common.features.vocabulary import write_vocabulary
from common.reader.files import matching_files
from common.reader.inspect.feature_inspection import inspect_features
from common.reader.inspect.feature_report import feature_report
from tests.support.encoded_rows import parse_features


def lines(folder: Path, table: pa.Table, features: dict[str, Any]) -> list[list[str]]:
    """Return the cells of each line of the report; cells are separated by two or more blanks."""
    pq.write_table(table, folder / "data.parquet")
    text = feature_report(inspect_features(matching_files(str(folder / "data.parquet")), parse_features(features)))
    return [re.split(r"\s{2,}", line.strip()) for line in text.splitlines() if line]


def test_every_table(tmp_path):
    path = tmp_path / "v.parquet"
    write_vocabulary(path, pa.array(["a"]))
    table = pa.table({"c": ["a", "b", None, "a"], "h": [1, 2, 3, 4], "l": [[1, 2, 3], [1], [], None]})
    features = {
        "c": {"kind": "category", "vocabulary": str(path)},
        "h": {"kind": "category", "hash_buckets": 1},
        "l": {"kind": "categories", "num_values": 5, "max_length": 2},
        "n": {"kind": "number", "column": "h"},
    }
    found = lines(tmp_path, table, features)
    assert found[0] == [f"{tmp_path / 'data.parquet'}: 1 file, 4 rows, 4 features"]
    assert ["c", "category", "4", "1 (25.0%)", "1 (25.0%)", "'b'"] in found
    assert ["h", "category", "4", "0 (0%)"] in found
    assert ["l", "categories", "4", "1 (25.0%)", "0 (0%)"] in found
    assert ["n", "number", "4", "0 (0%)"] in found
    assert ["h", "1", "1 (100%)", "4", "4 (100%)"] in found
    assert ["l", "3", "3", "2", "1 (33.3%)"] in found
    assert found[-1] == ["No errors found."]


def test_used_buckets_of_two_hashes(tmp_path):
    found = lines(
        tmp_path, pa.table({"h": range(100)}), {"h": {"kind": "category", "hash_buckets": 2, "num_hashes": 2}}
    )
    assert ["h", "2", "2 (100%)", "100", "100 (100%)"] in found


def test_errors(tmp_path):
    found = lines(tmp_path, pa.table({"h": ["a"]}), {"h": {"kind": "number"}})
    assert found[0] == [f"{tmp_path / 'data.parquet'}: 1 file, 0 rows, 0 features"]
    assert found[1] == ["Errors for a run that reads these features:"]
    assert "column 'h': found string" in found[2][0]
    assert len(found) == 3
