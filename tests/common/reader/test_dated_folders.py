import datetime
from pathlib import Path

import pytest

from common.reader.dated_folders import dated_files
from common.reader.files import DataError
from common.reader.periods import DAY, HOUR

FIVE = datetime.datetime(2023, 1, 31, 5)


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_files_of_days_are_sorted_by_day_and_path(tmp_path):
    files = ["2022/12/31/23/a.parquet", "2023/01/01/a.parquet", "2023/01/01/04/b/c.parquet", "2023/01/02/00/a.parquet"]
    touch(tmp_path, *reversed(files), "2022/12/30/a.parquet", "2023/01/03/a.parquet", "2023/a.parquet", "a.parquet")
    found, missing = dated_files(str(tmp_path), datetime.datetime(2023, 1, 2), 3, DAY)
    # A day is sorted by path: the folder "04" comes before the file "a.parquet".
    assert [str(path.relative_to(tmp_path)) for path in found.paths] == [files[0], files[2], files[1], files[3]]
    assert missing == []
    assert found.description == f"{tmp_path} (2022/12/31 to 2023/01/02)"


def test_hours_across_midnight_and_a_leap_day(tmp_path):
    hours = ["2024/02/28/23", "2024/02/29/00", "2024/02/29/23", "2024/03/01/00"]
    touch(tmp_path, *(f"{hour}/a.parquet" for hour in hours), "2024/02/29/a.parquet")
    found, missing = dated_files(str(tmp_path), datetime.datetime(2024, 3, 1), 26, HOUR)
    assert [str(path.relative_to(tmp_path).parent) for path in found.paths] == hours
    assert missing == [f"2024/02/29/{hour:02}" for hour in range(1, 23)]
    assert found.description == f"{tmp_path} (2024/02/28/23 to 2024/03/01/00)"


def test_folder_without_a_parquet_file_is_missing(tmp_path, caplog):
    touch(tmp_path, "2023/01/31/02/_SUCCESS", "2023/01/31/03/.part.parquet", "2023/01/31/04/.tmp/part.parquet")
    touch(tmp_path, "2023/01/31/02/_part.parquet", "2023/01/31/03/_temporary/0/part.parquet")
    (tmp_path / "2023/01/31/05/folder.parquet").mkdir(parents=True)
    touch(tmp_path, "2023/01/31/01")
    found, missing = dated_files(str(tmp_path), FIVE, 6, HOUR)
    assert found.paths == ()
    assert missing == [f"2023/01/31/{hour:02}" for hour in range(6)]
    # Not _SUCCESS: it is not named like a data file.
    assert f"{tmp_path}: skipped 4 path(s), because" in caplog.text


def test_links_are_followed(tmp_path):
    touch(tmp_path, "elsewhere/a.parquet")
    (tmp_path / "2023/01").mkdir(parents=True)
    (tmp_path / "2023/01/31").symlink_to(tmp_path / "elsewhere")
    found, missing = dated_files(str(tmp_path), FIVE, 1, DAY)
    assert found.paths == (tmp_path / "2023/01/31/a.parquet",)
    assert missing == []


@pytest.mark.parametrize("linked", ["30", "31"])
def test_a_day_that_is_a_link_to_another_day_is_read_once(tmp_path, linked, caplog):
    real = "31" if linked == "30" else "30"
    touch(tmp_path, f"2023/01/{real}/a.parquet", f"2023/01/{real}/05/b.parquet")
    (tmp_path / "2023/01" / linked).symlink_to(real)
    found, missing = dated_files(str(tmp_path), FIVE, 2, DAY)
    assert [path.name for path in found.paths] == ["b.parquet", "a.parquet"]
    assert missing == []
    assert "2 path(s) are other names of files found" in caplog.text


def test_root_relative_to_home_or_the_current_directory(tmp_path, monkeypatch):
    touch(tmp_path, "data[1]/2023/01/31/a.parquet")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for root in ("~/data[1]", "data[1]", "data[1]/"):
        found, _ = dated_files(root, FIVE, 1, DAY)
        assert [path.name for path in found.paths] == ["a.parquet"]
        assert found.description == f"{root} (2023/01/31 to 2023/01/31)"


def test_root_that_does_not_exist(tmp_path):
    with pytest.raises(DataError, match=r"nowhere: .*: No such file or directory \(current directory: /"):
        dated_files(str(tmp_path / "nowhere"), FIVE, 1, DAY)


def test_unreadable_folder_is_an_error_and_not_missing(tmp_path):
    loop = tmp_path / "2023/01/31"
    loop.parent.mkdir(parents=True)
    loop.symlink_to(loop)
    with pytest.raises(DataError, match=r"2023/01/31: .*: Too many levels of symbolic links"):
        dated_files(str(tmp_path), FIVE, 1, DAY)
