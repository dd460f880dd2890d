import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.reader.files import DataError
from projects.home.recap.tools.prepare.input_files import find_files
from tests.support.ingestion import ingested


def names(*inputs: Path) -> list[str]:
    return [file.path.name for file in find_files(inputs).files]


def test_files_directories_and_patterns(tmp_path):
    for name in ("b.csv", "a.csv", "c.tsv", "deep/d.csv", "_SUCCESS", ".a.csv.crc", "README.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x,y\n1,2\n")
    assert names(tmp_path / "b.csv", tmp_path / "a.csv", tmp_path / "b.csv") == ["b.csv", "a.csv"]
    assert names(tmp_path) == ["a.csv", "b.csv", "c.tsv", "d.csv"]
    assert names(tmp_path / "*.csv") == ["a.csv", "b.csv"]
    assert names(tmp_path / "README.md") == ["README.md"]
    for path, message in [
        (tmp_path / "nowhere.csv", "there is no such file or directory"),
        (tmp_path / "*.parquet", "no file matches"),
    ]:
        with pytest.raises(DataError, match=message):
            find_files([path])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: this directory has no visible file named \*\.csv, "):
        find_files([tmp_path / "empty"])


def test_files_have_one_format_that_their_content_states(tmp_path):
    (tmp_path / "a.csv").write_text("x,y\n1,2\n")
    pq.write_table(pa.table({"x": [1]}), tmp_path / "b")
    assert find_files([tmp_path / "b"]).format == "parquet"
    with pytest.raises(DataError, match=r"a\.csv is csv, but .*b is parquet\. Give files of one format"):
        find_files([tmp_path / "a.csv", tmp_path / "b"])
    with zipfile.ZipFile(tmp_path / "x.csv", "w") as file:
        file.writestr("table.csv", "x,y\n1,2\n")
    with pytest.raises(DataError, match=r"x\.csv is a zip archive"):
        find_files([tmp_path / "x.csv"])


def test_names_of_folders_are_columns(tmp_path):
    for day, country, number in [("2026-01-02", "d%20e", 2), ("2026-01-01", "__HIVE_DEFAULT_PARTITION__", 1)]:
        folder = tmp_path / f"day={day}" / f"country={country}"
        folder.mkdir(parents=True)
        pq.write_table(pa.table({"x": [number]}), folder / "part.parquet")
    for inputs in (tmp_path, tmp_path / "*" / "*", tmp_path / "day=*"):
        table = ingested(inputs)
        assert table.values("x") == [1, 2]
        assert [str(day) for day in table.values("day")] == ["2026-01-01", "2026-01-02"]
        assert table.column("day").type == "DATE"
        assert table.values("country") == [None, "d e"]
    (tmp_path / "day=2026-01-03").mkdir()
    pq.write_table(pa.table({"x": [3]}), tmp_path / "day=2026-01-03" / "part.parquet")
    with pytest.raises(DataError, match=r"state the columns day, country, but those of .* state day"):
        ingested(tmp_path)
