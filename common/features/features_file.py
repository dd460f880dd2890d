"""Reads the features that a user configured: a file of their own, or the configuration of an earlier table."""

from pathlib import Path

import pydantic

from common.features.config import Feature, Features
from core.config import load_config_from_yaml
from core.config.base_config import BaseConfig


class _FeaturesFile(BaseConfig):
    """The key features of a configuration, whatever other keys it has."""

    model_config = pydantic.ConfigDict(extra="ignore")

    features: Features = pydantic.Field(description="The features.")


def read_features(path: Path) -> dict[str, Feature]:
    """Return the features in a YAML file, by name.

    Raises:
      ConfigError: the file cannot be read, or the key features is missing or invalid.
    """
    return load_config_from_yaml(_FeaturesFile, path).features
