from pathlib import Path

import pytest

from common.errors import UserError
from common.process.paths import user_path


def test_a_leading_tilde_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path("~/a") == tmp_path / "a"
    assert user_path(Path("~/a")) == tmp_path / "a"
    assert user_path("a/~") == Path("a/~")


@pytest.mark.parametrize(("path", "problem"), [("~no such user/a", "no user of this name"), ("a\0b", "NUL")])
def test_an_invalid_path_is_an_error(path, problem):
    with pytest.raises(UserError, match=problem):
        user_path(path)
