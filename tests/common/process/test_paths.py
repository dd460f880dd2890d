import os
import subprocess
import sys
from pathlib import Path

import pytest

from common.errors import UserError
from common.process.paths import user_path
from tests.support.root import ROOT


def test_an_empty_path_is_an_error() -> None:
    """It would mean the current directory, which a variable that is not set does not ask for."""
    with pytest.raises(UserError, match="empty"):
        user_path("")


def test_a_leading_tilde_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path("~/a") == tmp_path / "a"
    assert user_path(Path("~/a")) == tmp_path / "a"
    assert user_path("a/~") == Path("a/~")


@pytest.mark.parametrize(("path", "problem"), [("~no such user/a", "no user of this name"), ("a\0b", "NUL")])
def test_an_invalid_path_is_an_error(path, problem):
    with pytest.raises(UserError, match=problem):
        user_path(path)


def test_a_path_that_the_locale_cannot_encode_is_an_error():
    """Uses a new process, whose encoding of file names is ASCII."""
    code = "from common.process.paths import user_path; user_path('/tmp/\\u0107')"
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    ended = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    last = ended.stderr.splitlines()[-1]
    assert last.startswith("common.errors.UserError: /tmp/\\u0107: ")
    assert "PYTHONUTF8=1" in last
    assert user_path("/tmp/ć") == Path("/tmp/ć")
