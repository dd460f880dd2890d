from pathlib import Path

import pytest

from common.reader.files import DataError, Files, matching_files


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


@pytest.mark.parametrize("inputs", ["", "/*.parquet", "/b.parquet", "/[ab].parquet", "/**/b.parquet"])
def test_files_of_a_directory_a_pattern_or_a_path(tmp_path, inputs):
    touch(tmp_path, "b.parquet", "a.parquet", "a.txt", ".hidden.parquet")
    expected = ("a.parquet", "b.parquet") if inputs in ("", "/*.parquet", "/[ab].parquet") else ("b.parquet",)
    given = f"{tmp_path}{inputs}"
    assert matching_files(given) == Files(tuple(tmp_path / name for name in expected), given)


def test_files_are_sorted_by_their_paths(tmp_path):
    names = ["part-0.parquet", "part-1.parquet", "part-10.parquet", "part-2.parquet"]
    touch(tmp_path, *reversed(names))
    assert [path.name for path in matching_files(str(tmp_path)).paths] == names


@pytest.mark.parametrize("name", ["a[1].parquet", "a*.parquet"])
def test_a_path_that_exists_is_no_pattern(tmp_path, name):
    folder = tmp_path / "data[1]"
    touch(folder, name, "aa.parquet")
    assert matching_files(f"{folder / name}").paths == (folder / name,)
    assert matching_files(f"{folder}").paths == tuple(sorted([folder / name, folder / "aa.parquet"]))


def test_a_path_from_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    touch(tmp_path, "a.parquet")
    assert matching_files("~/*.parquet") == Files((tmp_path / "a.parquet",), "~/*.parquet")


@pytest.mark.parametrize("inputs", ["", "/missing.parquet", "/*.parquet", "/missing/*.parquet"])
def test_nothing_matches(tmp_path, inputs):
    (tmp_path / "folder.parquet").mkdir()
    with pytest.raises(DataError, match=r"no file matches .*give a glob pattern, a file, or a directory") as caught:
        matching_files(f"{tmp_path}{inputs}")
    assert str(caught.value).startswith(f"{tmp_path}{inputs}: ")
