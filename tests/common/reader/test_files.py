import glob
import os
from pathlib import Path

import pytest

from common.reader.files import (
    DataError,
    Files,
    files_below,
    matching_files,
    paths_matching,
    unique_files,
    visible_files,
)


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
    assert files_below(tmp_path / "in") == (expected, [])


def test_broken_link_is_not_skipped(tmp_path):
    touch(tmp_path, "a.parquet")
    (tmp_path / "b.parquet").symlink_to("nowhere")
    assert len(matching_files(str(tmp_path)).paths) == 2


HIDDEN = (
    *("_temporary/0/a.parquet", "_a.parquet", ".a.parquet", "day/_temporary/a.parquet", "day/.staging/a.parquet"),
    *("day/_a.parquet", "day/.a.parquet"),
)


def test_a_pattern_skips_names_that_begin_with_an_underscore_or_a_dot(tmp_path, caplog):
    touch(tmp_path, "_root/a_.parquet", "_root/day/b.parquet", *(f"_root/{name}" for name in HIDDEN))
    root = tmp_path / "_root"  # in the fixed part of the pattern, a name may begin with an underscore
    assert matching_files(f"{root}/**/*.parquet").paths == (root / "a_.parquet", root / "day/b.parquet")
    assert "skipped 7 path(s), because their names, or those of their folders, begin with '_' or '.'" in caplog.text
    assert matching_files(f"{root}/*/*.parquet").paths == (root / "day/b.parquet",)
    assert matching_files(str(root)).paths == (root / "a_.parquet",)


@pytest.mark.parametrize("name", HIDDEN)
def test_a_hidden_file_can_be_given_by_its_path(tmp_path, name, caplog):
    touch(tmp_path, name)
    assert matching_files(f"{tmp_path}/{name}").paths == (tmp_path / name,)
    assert not caplog.records


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("_*.parquet", ["_a.parquet"]),
        (".*.parquet", [".a.parquet"]),
        ("*/_temporary/*", ["day/_temporary/a.parquet"]),
        ("**/_temporary/**/*.parquet", ["_temporary/0/a.parquet", "day/_temporary/a.parquet"]),
    ],
)
def test_a_pattern_can_select_hidden_names(tmp_path, pattern, expected):
    touch(tmp_path, "a.parquet", *HIDDEN)
    assert matching_files(f"{tmp_path}/{pattern}").paths == tuple(tmp_path / name for name in expected)


@pytest.mark.parametrize("inputs", ["", "/*.parquet", "/**/*.parquet"])
def test_error_if_all_matching_files_are_hidden(tmp_path, inputs):
    touch(tmp_path, "_a.parquet", ".a.parquet")
    with pytest.raises(DataError, match=r"all 2 matching files are skipped, .*, such as .*/\.a\.parquet\. To read"):
        matching_files(f"{tmp_path}{inputs}")


def link(path: Path, target: Path, kind: str) -> None:
    path.hardlink_to(target) if kind == "hard" else path.symlink_to(target)


@pytest.mark.parametrize("kind", ["hard", "symbolic"])
def test_a_file_with_two_names_is_found_once(tmp_path, kind, caplog):
    touch(tmp_path, "a.parquet", "other.parquet")
    link(tmp_path / "b.parquet", tmp_path / "a.parquet", kind)
    assert matching_files(str(tmp_path)).paths == (tmp_path / "a.parquet", tmp_path / "other.parquet")
    assert "1 path(s) are other names of files found, such as" in caplog.text
    assert matching_files(f"{tmp_path}/b.parquet").paths == (tmp_path / "b.parquet",)


@pytest.mark.parametrize("kind", ["hard", "symbolic"])
def test_a_link_to_a_hidden_file_is_read(tmp_path, kind):
    touch(tmp_path, "_staged/a.parquet")
    link(tmp_path / "a.parquet", tmp_path / "_staged/a.parquet", kind)
    assert matching_files(f"{tmp_path}/**/*.parquet").paths == (tmp_path / "a.parquet",)


def test_a_linked_folder_is_read_once(tmp_path):
    touch(tmp_path, "1/a.parquet", "1/b.parquet")
    (tmp_path / "2").symlink_to("1")
    assert matching_files(f"{tmp_path}/*/*.parquet").paths == (tmp_path / "1/a.parquet", tmp_path / "1/b.parquet")


def test_copies_are_different_files(tmp_path):
    touch(tmp_path, "a.parquet", "b.parquet")
    for name in ("a.parquet", "b.parquet"):
        os.utime(tmp_path / name, (0, 0))
    assert unique_files([tmp_path / "b.parquet", tmp_path / "a.parquet"], "") == [
        tmp_path / "b.parquet",
        tmp_path / "a.parquet",
    ]


def test_hidden_directories_are_not_searched(tmp_path):
    touch(tmp_path, "a", "_b", ".c", "day/_d/e", "day/f")
    (tmp_path / "g").symlink_to("day/_d")
    files, hidden = files_below(tmp_path)
    assert files == [tmp_path / "a", tmp_path / "day/f", tmp_path / "g/e"]
    assert hidden == [tmp_path / ".c", tmp_path / "_b", tmp_path / "day/_d"]


def test_folders_are_not_files(tmp_path):
    touch(tmp_path, "a.parquet/part.parquet", "_a.parquet/part.parquet", "b.parquet")
    assert visible_files(tmp_path.iterdir(), tmp_path) == ([tmp_path / "b.parquet"], [])


def test_links_to_the_folder_that_contains_them_are_not_followed(tmp_path: Path) -> None:
    """glob.glob() would follow two of them in all combinations, practically forever."""
    (tmp_path / "day").mkdir()
    for path in (tmp_path / "a.parquet", tmp_path / "day" / "b.parquet"):
        path.write_bytes(b"")
    for name in ("latest", "current"):
        (tmp_path / name).symlink_to(".")
    (tmp_path / "day" / "up").symlink_to("..")
    (tmp_path / "other").symlink_to("day")
    files = matching_files(f"{tmp_path}/**/*.parquet")
    assert files.paths == (tmp_path / "a.parquet", tmp_path / "day/b.parquet")


@pytest.mark.parametrize(
    "pattern",
    ["*", "**", "**/*", "*/*", "**/x*", "a/**/x?", "a*/**/b/*", "**/**/x1", "[ab]/x[!1]", "none/*", "a/../*", "x0"],
)
def test_patterns_match_what_glob_matches(tmp_path: Path, pattern: str) -> None:
    for folder in (".", "a", "a/b", "a/b/c", "b", ".hidden", "[ab]"):
        (tmp_path / folder).mkdir(exist_ok=True)
        for name in ("x0", "x1", ".y", "_z"):
            (tmp_path / folder / name).write_bytes(b"")
    found = glob.glob(f"{tmp_path}/{pattern}", recursive=True, include_hidden=True)  # noqa: PTH207
    assert paths_matching(tmp_path, Path(pattern).parts) == {Path(path) for path in found}
