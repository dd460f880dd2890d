"""Reads messages about errors in configurations."""

import re
from pathlib import Path

import pytest

from common.errors import ConfigError
from core.config import BaseConfig, load_config_from_yaml


def message_about(key_path: str, kind: type[BaseConfig], path: Path, override: str) -> str:
    """Return the message about a configuration with an override, after the key path of its only error."""
    with pytest.raises(ConfigError) as caught:
        load_config_from_yaml(kind, path, [override])
    first, *errors = str(caught.value).splitlines()
    assert first == f"{path}: 1 error"
    [error] = errors
    start = re.match(rf"  {re.escape(key_path)}( \((line \d+|--set .*?)\))?: ", error)
    assert start, error
    return error[start.end() :]
