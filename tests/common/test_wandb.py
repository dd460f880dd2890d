"""The configuration of W&B and the check of its key file."""

import stat
from pathlib import Path
from typing import Any

import pytest

from common.errors import ConfigError
from common.wandb import WandbConfig, check_wandb


@pytest.fixture
def key_path(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_text("0123456789" * 4 + "\n")
    path.chmod(0o600)
    return path


@pytest.mark.parametrize(
    "host", ["api.wandb.ai", "https://wandb.ai", "https://app.wandb.ai/team", "http://api.wandb.ai"]
)
def test_a_host_that_is_not_a_servers_url_is_an_error(host):
    with pytest.raises(ValueError, match=r"https://api\.wandb\.ai"):
        WandbConfig(host=host)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"project": "team/name"}, "none of .* set entity"),
    ({"project": ""}, "1 to 128"),
    ({"project": "a" * 129}, "1 to 128"),
    ({"project": "a?"}, "none of"),
    ({"entity": "team/name"}, "without slashes"),
    ({"entity": ""}, "without slashes"),
    ({"tags": ["good", "a" * 70]}, "1 to 64 characters, but this one has 70"),
    ({"tags": [""]}, "1 to 64 characters, but this one has 0"),
    ({"name": ""}, "at least 1"),
    ({"name": "a" * 129}, "at most 128"),
]


@pytest.mark.parametrize(("settings", "problem"), REFUSED)
def test_what_wandb_would_refuse_is_refused_in_the_configuration(settings, problem):
    with pytest.raises(ValueError, match=problem):
        WandbConfig(**settings)


def test_the_longest_names_are_allowed():
    WandbConfig(project="a" * 128, name="a" * 128, tags=["a" * 64])


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("WANDB_PROJECT", "team/name", "recap"),
        ("WANDB_MODE", "OFF", "offline"),
        ("WANDB_BASE_URL", "wandb.example", "https://wandb.example"),
        ("WANDB_ENTITY", "team/name", "team"),
        ("WANDB_INIT_TIMEOUT", "soon", "30"),
    ],
)
def test_a_variable_that_wandb_would_refuse_is_an_error(monkeypatch, name, value, allowed):
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=f"the environment sets {name}='{value}': .*Correct or unset it"):
        check_wandb(WandbConfig())
    monkeypatch.setenv(name, allowed)
    check_wandb(WandbConfig())


def test_the_configuration_overrides_a_variable(monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "team/name")
    check_wandb(WandbConfig(project="recap"))


def test_a_tilde_in_the_key_path_is_expanded(tmp_path, key_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    key_path.rename(tmp_path / "home" / "key")
    check_wandb(WandbConfig(key_path="~/key"))


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o610])
def test_a_key_file_that_others_can_access_is_an_error(key_path, mode):
    key_path.chmod(mode)
    with pytest.raises(ConfigError) as raised:
        check_wandb(WandbConfig(key_path=str(key_path)))
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
        check_wandb(WandbConfig(key_path=str(key_path)))
    assert "my key" not in str(raised.value)


def test_no_key_path_is_allowed():
    check_wandb(WandbConfig())


def test_a_missing_key_file_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere: no such file.*chmod 600"):
        check_wandb(WandbConfig(key_path=str(tmp_path / "nowhere")))
    with pytest.raises(ConfigError, match="not a file"):
        check_wandb(WandbConfig(key_path=str(tmp_path)))
