"""Configures Weights & Biases, and checks its key file.

`common.tracking.wandb` holds the tracker that sends measurements to it.
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
    """Settings of Weights & Biases. Without an API key, the run is recorded offline."""

    host: str | None = pydantic.Field(
        None, description="URL of the W&B server; null uses WANDB_BASE_URL, or the public https://api.wandb.ai."
    )
    key_path: str | None = pydantic.Field(
        None,
        min_length=1,
        description="File that contains only the API key and that only its owner can read (chmod 600); "
        "null uses WANDB_API_KEY or ~/.netrc.",
    )
    name: str | None = pydantic.Field(None, description="Name of the run; null lets W&B choose one.")
    entity: str | None = pydantic.Field(
        None, description="User or team that owns the run; null uses the key's default."
    )
    project: str | None = pydantic.Field(
        None, description="W&B project; null lets W&B name it after the repository or the program."
    )
    tags: list[str] = pydantic.Field([], description="Tags of the run.")
    notes: str | None = pydantic.Field(None, description="Longer description of the run.")
    metadata: dict[str, Any] | None = pydantic.Field(
        None, description="Any other values that help to find the run. Stored under 'metadata' in the run's config."
    )

    @pydantic.field_validator("host")
    @classmethod
    def _host_is_a_url(cls, host: str | None) -> str | None:
        if host is not None and not re.match(r"https?://[^/]", host):
            raise ValueError("expected a URL such as https://api.wandb.ai")
        return host


def check_key_file(config: WandbConfig) -> None:
    """Raise ConfigError if `key_path` is set and its file is not a usable key file.

    The file must exist, contain exactly one word, and be accessible only to its owner. Call this before training
    starts.
    """
    if config.key_path is not None:
        read_key(config.key_path)


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
