"""Configures Weights & Biases, and checks its key file and its environment variables.

`common.tracking.wandb` holds the tracker that sends measurements to it.
"""

import os
import re
import stat
from collections.abc import Callable
from typing import Annotated, Any

import pydantic

from common.errors import ConfigError
from common.process.paths import user_path
from core.config.base_config import BaseConfig

_MODES = ("online", "offline", "disabled", "shared", "dryrun", "run")
_MAX_NAME, _MAX_TAG = 128, 64
_NOT_IN_A_PROJECT = "/\\#?%:"


def _check_host(host: str) -> str:
    if not re.match(r"https?://[^/]", host):
        raise ValueError("expected a URL such as https://api.wandb.ai")
    if re.search(r"^https?://(\w+\.)?wandb\.ai\b", host) and not host.startswith("https://api."):
        raise ValueError("this is W&B's web site; the server is https://api.wandb.ai")
    return host


def _check_project(project: str) -> str:
    if not 1 <= len(project) <= _MAX_NAME or any(character in project for character in _NOT_IN_A_PROJECT):
        raise ValueError(
            f"a project name has 1 to {_MAX_NAME} characters, but none of {' '.join(_NOT_IN_A_PROJECT)}. To choose a "
            "team, set entity"
        )
    return project


def _check_entity(entity: str) -> str:
    if not entity or "/" in entity:
        raise ValueError("a user or team has a name without slashes; the project is a key of its own")
    return entity


def _check_tag(tag: str) -> str:
    if not 1 <= len(tag) <= _MAX_TAG:
        raise ValueError(f"a tag has 1 to {_MAX_TAG} characters, but this one has {len(tag)}")
    return tag


def _check_mode(mode: str) -> str:
    if mode not in _MODES:
        raise ValueError(f"allowed: {', '.join(_MODES)}")
    return mode


def _check_timeout(seconds: str) -> str:
    if not re.fullmatch(r"\d+(\.\d+)?", seconds):
        raise ValueError("expected a number of seconds")
    return seconds


class WandbConfig(BaseConfig):
    """Settings of Weights & Biases. Without an API key, the run is recorded offline."""

    host: Annotated[str, pydantic.AfterValidator(_check_host)] | None = pydantic.Field(
        None, description="URL of the W&B server; null uses WANDB_BASE_URL, or the public https://api.wandb.ai."
    )
    key_path: str | None = pydantic.Field(
        None,
        min_length=1,
        description="File that contains only the API key and that only its owner can read (chmod 600); "
        "null uses WANDB_API_KEY or ~/.netrc.",
    )
    name: str | None = pydantic.Field(
        None, min_length=1, max_length=_MAX_NAME, description="Name of the run; null lets W&B choose one."
    )
    entity: Annotated[str, pydantic.AfterValidator(_check_entity)] | None = pydantic.Field(
        None, description="User or team that owns the run; null uses the key's default."
    )
    project: Annotated[str, pydantic.AfterValidator(_check_project)] | None = pydantic.Field(
        None, description="W&B project; null lets W&B name it after the repository or the program."
    )
    tags: list[Annotated[str, pydantic.AfterValidator(_check_tag)]] = pydantic.Field([], description="Tags of the run.")
    notes: str | None = pydantic.Field(None, description="Longer description of the run.")
    metadata: dict[str, Any] | None = pydantic.Field(
        None, description="Any other values that help to find the run. Stored under 'metadata' in the run's config."
    )


# The variables that people set most, with the field that overrides each. They are checked before anything is loaded;
# the tracker lets W&B check all others.
_VARIABLES: tuple[tuple[str, str | None, Callable[[str], str]], ...] = (
    ("WANDB_BASE_URL", "host", _check_host),
    ("WANDB_ENTITY", "entity", _check_entity),
    ("WANDB_PROJECT", "project", _check_project),
    ("WANDB_MODE", None, _check_mode),
    ("WANDB_INIT_TIMEOUT", None, _check_timeout),
)


def check_wandb(config: WandbConfig) -> None:
    """Check the key file and the environment variables that W&B reads. Call this before training starts.

    Raises:
      ConfigError: `key_path` is set and its file does not exist, does not contain exactly one word, or is accessible to
        others than its owner; or W&B would refuse the value of a variable.
    """
    if config.key_path is not None:
        read_key(config.key_path)
    for name, field, check in _VARIABLES:
        value = os.environ.get(name)
        if not value or (field is not None and getattr(config, field) is not None):
            continue
        try:
            check(value)
        except ValueError as error:
            raise ConfigError(f"the environment sets {name}={value!r}: {error}. Correct or unset it") from error


def read_key(key_path: str) -> str:
    """Return the API key in the file. Raises ConfigError if the file is not a usable key file."""
    path = user_path(key_path)
    where = f"runtime.wandb.key_path {path}"
    if not os.path.exists(path):  # noqa: PTH110 - Path.exists raises if a directory may not be entered
        raise ConfigError(f"{where}: no such file. Write only the API key into it, then run: chmod 600 {path}")
    if not path.is_file():
        raise ConfigError(f"{where}: this is not a file. Give the path of a file that contains the API key.")
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise ConfigError(
            f"{where}: the file has mode {mode:03o}, so users other than its owner can access the key. "
            f"Run: chmod 600 {path}"
        )
    try:
        words = path.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        # The text of the error could reveal the content of the file.
        raise ConfigError(f"{where}: the file cannot be read as text ({type(error).__name__}).") from None
    if len(words) != 1:
        raise ConfigError(f"{where}: the file contains {len(words)} words. Write only the API key into it.")
    return words[0]
