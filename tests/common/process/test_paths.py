from pathlib import Path

import pytest

from common.errors import UserError
from common.process.paths import user_path


def test_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path("~/a") == tmp_path / "a"
    assert user_path(Path("~/a")) == tmp_path / "a"
    assert user_path("a/~") == Path("a/~")


@pytest.mark.parametrize("path", ["~no such user/a", "a\0b"])
def test_what_can_be_no_path(path):
    with pytest.raises(UserError, match=r"no user of this name|can't hold the character NUL"):
        user_path(path)
