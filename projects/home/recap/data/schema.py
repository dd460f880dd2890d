"""Which features the records have: the segdense schema, read and checked."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from core.config.base_config import ConfigError
from projects.home.recap.data.config import RecapDataConfig
from projects.home.recap.data.parquet import EMBEDDINGS

_DTYPES = {"continuous": torch.float32, "binary": torch.float32, "discrete": torch.int64}
_FEATURES = (*_DTYPES, *EMBEDDINGS)


@dataclass(frozen=True)
class FeatureWidths:
    """Widths of the features as the model gets them."""

    continuous: int
    binary: int
    embeddings: Mapping[str, int]
    discrete: int = 0
    """0: the data has none."""


@dataclass(frozen=True)
class Feature:
    """A feature in the records."""

    column: str
    dtype: torch.dtype
    width: int
    keep: int
    """The first so many values are used."""


def read_features(config: RecapDataConfig, path: str) -> dict[str, Feature]:
    """The features that a data set's configuration asks for, by our names.

    Args:
      config: of the data set.
      path: of `config` within the whole configuration, for messages.

    Raises:
      ConfigError: the schema can't be read, or does not hold what is asked for.
    """
    schema = config.seg_dense_schema
    place = f"{path}.seg_dense_schema"
    lengths = _read_lengths(schema.schema_path, f"{place}.schema_path")
    for ours in [*schema.features, *schema.renamed_features]:
        # Ids and labels may be renamed too in a schema of the original; they are not features.
        if ours not in _FEATURES and (ours in schema.features or not ours.startswith("meta__")):
            raise ConfigError(f"{place}: no feature '{ours}'; features: {', '.join(_FEATURES)}")
    truncation = config.preprocess.truncate_and_slice if config.preprocess is not None else None
    features: dict[str, Feature] = {}
    for ours in _FEATURES:
        column = schema.renamed_features.get(ours, ours)
        asked_for = ours in schema.features or (not schema.features and column in lengths)
        if not asked_for and ours not in ("continuous", "binary"):
            continue
        if column not in lengths:
            found = ", ".join(lengths) or "nothing"
            raise ConfigError(f"{place}: '{column}' ({ours}) is not in {schema.schema_path}, which has {found}")
        width = keep = lengths[column]
        if truncation is not None:
            name = f"{ours}_feature_truncation"
            keep = getattr(truncation, name, None) or width
            if keep > width:
                raise ConfigError(
                    f"{path}.preprocess.truncate_and_slice.{name}: {keep} given, but {schema.schema_path} "
                    f"says that '{column}' has {width} values"
                )
        features[ours] = Feature(column, _DTYPES.get(ours, torch.float32), width, keep)
    return features


def feature_widths(features: Mapping[str, Feature]) -> FeatureWidths:
    """What the model is built for."""
    return FeatureWidths(
        features["continuous"].keep,
        features["binary"].keep,
        {name: features[name].keep for name in EMBEDDINGS if name in features},
        features["discrete"].keep if "discrete" in features else 0,
    )


def _read_lengths(schema_path: str, place: str) -> dict[str, int]:
    file = Path(schema_path).expanduser()
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))["schema"]
        pairs = [(entry["feature_name"], entry["length"]) for entry in entries]
    except OSError as error:
        raise ConfigError(f"{place}: {file} can't be read: {error.strerror} (looked from {Path.cwd()})") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(
            f'{place}: {file} is not of the form {{"schema": [{{"feature_name": ..., "dtype": ..., "length": ...}}]}}: '
            f"{type(error).__name__}: {error}"
        ) from error
    lengths: dict[str, int] = {}
    for name, length in pairs:
        if not isinstance(name, str):
            raise ConfigError(f"{place}: {file}: feature_name {name!r}, a string expected")
        if name in lengths:
            raise ConfigError(f"{place}: {file} has '{name}' twice")
        if not isinstance(length, int) or isinstance(length, bool) or length < 1:
            raise ConfigError(f"{place}: {file}: the length of '{name}' is {length!r}, a positive integer expected")
        lengths[name] = length
    return lengths
