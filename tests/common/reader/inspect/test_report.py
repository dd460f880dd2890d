import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from common.reader.files import matching_files
from common.reader.inspect.inspection import MOST_FINDINGS, inspect
from common.reader.inspect.report import report


def write(path: Path, columns: dict[str, Any], row_group_size: int = 4) -> Path:
    pq.write_table(pa.table(columns), path, row_group_size=row_group_size, write_page_checksum=True)
    return path


def reported(path: Path) -> dict[str, list[str]]:
    """Return the cells of each line by its first cell; cells are separated by two or more blanks."""
    text = report(inspect(matching_files(str(path))))
    assert text.endswith("\n")
    assert max(map(len, text.splitlines())) < 200
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        first, *cells = re.split(r"\s{2,}", line.strip())
        found.setdefault(first, []).extend(cells)
    return found


def test_sizes_schema_statistics_and_rates(tmp_path):
    vectors = pa.array([[0.0, 1.0], [float("nan"), 3.0], [0.0, 0.0], [0.0, 4.0], [2.0, 0.0]], pa.list_(pa.float32(), 2))
    write(tmp_path / "a.parquet", {"v": vectors, "label": [0, 1, 0, 0, 0], "text": list("abcde")})
    found = reported(tmp_path)
    assert f"{tmp_path}: 1 file, 5 rows, compression SNAPPY" in found
    assert found["rows"][:4] == ["1", "2", "4", "5"]
    assert found["decoded"] == ["16 B", "40 B", "64 B", "80 B"]
    finite = np.array([0, 1, 3, 0, 0, 0, 4, 2, 0])
    statistics = ["10", "0", f"{finite.mean():.5g}", "4", f"{finite.std():.5g}", "50.0%", "10.0%"]
    assert found["v"] == ["fixed_size_list of float", "2", *statistics]
    assert found["label"] == ["int64", "5", "1", "0.20000"]
    assert found["text"] == ["string"]
    assert "No errors found." in found


def test_similar_columns_share_a_line_but_each_label_has_its_own(tmp_path):
    columns: dict[str, Any] = {f"p.{index}": [0.1 * index, 0.5] for index in range(6)}
    columns |= {f"f{index:02}": [index, 9] for index in range(12)}
    columns |= {f"is.{name}": [0, 1] for name in "abcd"}
    columns |= {f"other.{name}": [0.5, 0.5] for name in "abc"}
    found = reported(write(tmp_path / "a.parquet", columns))
    assert found["p.* (6)"][:4] == ["double", "12", "0", f"{(1.5 + 6 * 0.5) / 12:.5g}"]
    assert found["f* (12)"][:3] == ["int64", "24", "0"]
    assert found["is.* (4)"] == ["int64"]
    assert found["is.a"] == ["2", "1", "0.50000"]
    assert found["other.a"][0] == "double"
    assert "p.1" not in found


def test_share_of_almost_none_or_almost_all_is_not_rounded(tmp_path):
    one, others = np.zeros(10_000), np.ones(10_000)
    one[5], others[7] = 1, 0
    found = reported(write(tmp_path / "a.parquet", {"one": one, "others": others, "none": np.ones(10_000)}, 10_000))
    assert [found[name][-2] for name in ("one", "others", "none")] == [">99.9%", "<0.1%", "0%"]


def test_first_errors_are_listed_and_the_others_counted(tmp_path):
    write(tmp_path / "a.parquet", {"x": [1, 2]})
    assert "No errors found." in reported(tmp_path)
    for index in range(MOST_FINDINGS + 5):
        (tmp_path / f"b{index:03}.parquet").touch()
    found = reported(tmp_path)
    assert "Errors for a run that reads these files and columns:" in found
    assert "No errors found." not in found
    assert sum("cannot read this file as Parquet" in line for line in found) == MOST_FINDINGS
    assert "and 5 more" in found
    files = f"{MOST_FINDINGS + 6} files ({MOST_FINDINGS + 5} unreadable)"
    assert f"{tmp_path}: {files}, 2 rows, compression SNAPPY" in found


def test_no_readable_file(tmp_path):
    (tmp_path / "a.parquet").touch()
    found = reported(tmp_path)
    assert f"{tmp_path}: 1 file (1 unreadable), 0 rows" in found


def test_columns_without_a_finite_value(tmp_path):
    found = reported(write(tmp_path / "a.parquet", {"x": [float("nan")] * 3, "y": pa.array([None] * 3, pa.int64())}))
    assert found["x"] == ["double", "3", "-", "-", "-", "-", "0%", "100%"]
    assert found["y"] == ["int64"]
