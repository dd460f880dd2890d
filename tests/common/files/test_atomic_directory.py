from pathlib import Path

import pytest

from common.errors import UserError
from common.files.atomic_directory import atomic_directory


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def test_directory_appears_when_complete(tmp_path):
    out = tmp_path / "new" / "out"
    with atomic_directory(out) as partial:
        (partial / "a").write_text("x")
        assert not out.exists()
    assert names(tmp_path / "new") == ["out"]
    assert (out / "a").read_text() == "x"


def test_error_leaves_nothing_behind(tmp_path):
    def fail() -> None:
        with atomic_directory(tmp_path / "out") as partial:
            (partial / "a").write_text("x")
            raise UserError("bad data")

    with pytest.raises(UserError, match="bad data"):
        fail()
    assert not names(tmp_path)


def test_existing_file_or_directory_is_refused_and_unchanged(tmp_path):
    (tmp_path / "file").write_text("x")
    for out in (tmp_path, tmp_path / "file"):
        with pytest.raises(UserError, match=f"^--out {out} already exists"), atomic_directory(out):
            raise AssertionError
    assert names(tmp_path) == ["file"]


def test_empty_directory_is_replaced(tmp_path):
    (tmp_path / "out").mkdir()
    with atomic_directory(tmp_path / "out") as partial:
        (partial / "a").write_text("x")
    assert names(tmp_path / "out") == ["a"]


def test_operating_system_error_names_the_directory(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"^--out .*file/out: "), atomic_directory(tmp_path / "file" / "out"):
        raise AssertionError
