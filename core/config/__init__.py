"""Exports the base of configuration. `core.config.training` is in a higher layer; import it by its own name."""

from common.errors import ConfigError, UserError
from core.config.base_config import BaseConfig
from core.config.config_load import load_config_from_yaml

__all__ = ["BaseConfig", "ConfigError", "UserError", "load_config_from_yaml"]
