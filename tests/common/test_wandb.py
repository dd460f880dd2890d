"""The configuration of W&B and the check of its key file."""

import stat
from pathlib import Path

import pytest

from common.errors import ConfigError
from common.wandb import WandbConfig, check_key_file


@pytest.fixture
def key_path(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_text("0123456789" * 4 + "\n")
    path.chmod(0o600)
    return path


def test_a_host_that_is_not_a_url_is_an_error():
    with pytest.raises(ValueError, match=r"https://api\.wandb\.ai"):
        WandbConfig(host="api.wandb.ai")


def test_a_tilde_in_the_key_path_is_expanded(tmp_path, key_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    key_path.rename(tmp_path / "home" / "key")
    check_key_file(WandbConfig(key_path="~/key"))


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o610])
def test_a_key_file_that_others_can_access_is_an_error(key_path, mode):
    key_path.chmod(mode)
    with pytest.raises(ConfigError) as raised:
        check_key_file(WandbConfig(key_path=str(key_path)))
    assert f"{key_path}: " in str(raised.value)
    assert f"mode {mode:o}" in str(raised.value)
    assert f"chmod 600 {key_path}" in str(raised.value)
    assert stat.S_IMODE(key_path.stat().st_mode) == mode


@pytest.mark.parametrize(
    ("content", "problem"),
    [(b" \n", "0 words"), (b"my key\n", "2 words"), (b"\xff\xfe", "text")],
)
def test_a_key_file_without_a_key_is_an_error_that_does_not_reveal_its_content(key_path, content, problem):
    key_path.write_bytes(content)
    with pytest.raises(ConfigError, match=problem) as raised:
        check_key_file(WandbConfig(key_path=str(key_path)))
    assert "my key" not in str(raised.value)


def test_no_key_path_is_allowed():
    check_key_file(WandbConfig())


def test_a_missing_key_file_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere: no such file.*chmod 600"):
        check_key_file(WandbConfig(key_path=str(tmp_path / "nowhere")))
    with pytest.raises(ConfigError, match="not a file"):
        check_key_file(WandbConfig(key_path=str(tmp_path)))
