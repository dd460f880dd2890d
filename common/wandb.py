"""Weights & Biases: its configuration and the check of its key file.

The tracker that sends measurements there is in `common.tracking.wandb`.
"""

import os
import re
import stat
from typing import Any

import pydantic

from common.errors import ConfigError
from common.process.paths import user_path
from core.config.base_config import BaseConfig


class WandbConfig(BaseConfig):
    """What is sent to Weights & Biases, and where. Without any API key the run is recorded offline."""

    host: str | None = pydantic.Field(
        None, description="URL of the W&B server; null: WANDB_BASE_URL, or the public https://api.wandb.ai."
    )
    key_path: str | None = pydantic.Field(
        None,
        min_length=1,
        description="File that holds the API key and nothing else, readable by its owner alone (chmod 600). "
        "null: WANDB_API_KEY or ~/.netrc.",
    )
    name: str | None = pydantic.Field(None, description="Name of the run; null: W&B invents one.")
    entity: str | None = pydantic.Field(None, description="User or team that owns the run; null: the key's default.")
    project: str | None = pydantic.Field(
        None, description="W&B project; null: W&B names it after the repository or the program."
    )
    tags: list[str] = pydantic.Field([], description="Tags of the run.")
    notes: str | None = pydantic.Field(None, description="Longer description of the run.")
    metadata: dict[str, Any] | None = pydantic.Field(
        None, description="Anything else to find the run by; stands under 'metadata' in the run's config."
    )

    @pydantic.field_validator("host")
    @classmethod
    def _host_is_a_url(cls, host: str | None) -> str | None:
        if host is not None and not re.match(r"https?://[^/]", host):
            raise ValueError("expected a URL like https://api.wandb.ai")
        return host


def check_key_file(config: WandbConfig) -> None:
    """Raises ConfigError if `key_path` is set and cannot serve: called before anything is started.

    The file must exist, hold one word, and be readable by its owner alone.
    """
    if config.key_path is not None:
        read_key(config.key_path)


def read_key(key_path: str) -> str:
    path = user_path(key_path)
    place = f"runtime.wandb.key_path {path}"
    if not os.path.exists(path):  # noqa: PTH110 - Path.exists raises where a directory may not be entered
        raise ConfigError(f"{place}: no such file. Write the API key into it, and nothing else; then chmod 600 {path}")
    if not path.is_file():
        raise ConfigError(f"{place}: not a file. Give the path of a file that holds the API key.")
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise ConfigError(f"{place}: has mode {mode:03o}, so others than its owner may read the key: chmod 600 {path}")
    try:
        words = path.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        # The error's text could show what the file holds.
        raise ConfigError(f"{place}: cannot be read as text ({type(error).__name__}).") from None
    if len(words) != 1:
        raise ConfigError(f"{place}: holds {len(words) or 'no'} words. Write the API key into it, and nothing else.")
    return words[0]
