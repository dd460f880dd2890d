from pathlib import Path

import pytest

from common.errors import UserError
from common.files.atomic_directory import atomic_directory


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def test_it_appears_when_it_is_complete(tmp_path):
    out = tmp_path / "new" / "out"
    with atomic_directory(out) as partial:
        (partial / "a").write_text("x")
        assert not out.exists()
    assert names(tmp_path / "new") == ["out"]
    assert (out / "a").read_text() == "x"


def test_an_error_leaves_nothing(tmp_path):
    def make() -> None:
        with atomic_directory(tmp_path / "out") as partial:
            (partial / "a").write_text("x")
            raise UserError("a mistake")

    with pytest.raises(UserError, match="a mistake"):
        make()
    assert not names(tmp_path)


def test_what_is_there_is_left_alone(tmp_path):
    (tmp_path / "file").write_text("x")
    for out in (tmp_path, tmp_path / "file"):
        with pytest.raises(UserError, match="exists already"), atomic_directory(out):
            raise AssertionError
    assert names(tmp_path) == ["file"]


def test_an_empty_directory_may_be_there(tmp_path):
    (tmp_path / "out").mkdir()
    with atomic_directory(tmp_path / "out") as partial:
        (partial / "a").write_text("x")
    assert names(tmp_path / "out") == ["a"]


def test_what_the_operating_system_refuses(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"^--out .*file/out: "), atomic_directory(tmp_path / "file" / "out"):
        raise AssertionError
