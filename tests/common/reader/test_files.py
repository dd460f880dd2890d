from pathlib import Path

import pytest

from common.reader.files import DataError, Files, files_below, matching_files


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


@pytest.mark.parametrize("inputs", ["", "/*.parquet", "/b.parquet", "/[ab].parquet", "/**/b.parquet"])
def test_files_of_a_directory_pattern_or_path(tmp_path, inputs):
    touch(tmp_path, "b.parquet", "a.parquet", "a.txt", ".hidden.parquet")
    expected = ("a.parquet", "b.parquet") if inputs in ("", "/*.parquet", "/[ab].parquet") else ("b.parquet",)
    given = f"{tmp_path}{inputs}"
    assert matching_files(given) == Files(tuple(tmp_path / name for name in expected), given)


def test_files_are_sorted_by_path(tmp_path):
    names = ["part-0.parquet", "part-1.parquet", "part-10.parquet", "part-2.parquet"]
    touch(tmp_path, *reversed(names))
    assert [path.name for path in matching_files(str(tmp_path)).paths] == names


@pytest.mark.parametrize("name", ["a[1].parquet", "a*.parquet"])
def test_existing_path_is_not_a_pattern(tmp_path, name):
    folder = tmp_path / "data[1]"
    touch(folder, name, "aa.parquet")
    assert matching_files(f"{folder / name}").paths == (folder / name,)
    assert matching_files(f"{folder}").paths == tuple(sorted([folder / name, folder / "aa.parquet"]))


def test_path_relative_to_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    touch(tmp_path, "a.parquet")
    assert matching_files("~/*.parquet") == Files((tmp_path / "a.parquet",), "~/*.parquet")


@pytest.mark.parametrize("inputs", ["", "/missing.parquet", "/*.parquet", "/missing/*.parquet"])
def test_no_file_matches(tmp_path, inputs):
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match=r"no file matches .*give a glob pattern, a file, or a directory") as caught:
        matching_files(f"{tmp_path}{inputs}")
    assert str(caught.value).startswith(f"{tmp_path}{inputs}: ")


def test_error_mentions_files_in_subdirectories(tmp_path):
    (tmp_path / "2023").mkdir()
    touch(tmp_path / "2023", "a.parquet")
    with pytest.raises(DataError, match=r"no \*\.parquet file directly in .*subdirectories, use .*/\*\*/\*\.parquet$"):
        matching_files(str(tmp_path))


@pytest.mark.parametrize("loop", [".", ".."])
def test_link_to_a_parent_directory_repeats_no_file(tmp_path, loop):
    (tmp_path / "in" / "2023").mkdir(parents=True)
    touch(tmp_path / "in" / "2023", "a.parquet")
    (tmp_path / "in" / "2023" / "loop").symlink_to(loop)
    expected = [tmp_path / "in" / "2023" / "a.parquet"]
    assert list(matching_files(f"{tmp_path}/in/**/*.parquet").paths) == expected
    assert files_below(tmp_path / "in") == expected


def test_broken_link_is_not_skipped(tmp_path):
    touch(tmp_path, "a.parquet")
    (tmp_path / "b.parquet").symlink_to("nowhere")
    assert len(matching_files(str(tmp_path)).paths) == 2
