"""Which features the records have: the segdense schema, read and checked."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

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


class SchemaEntry(NamedTuple):
    """What the schema says of a feature in the records."""

    dtype: object
    """"float_list" or "int64_list" in the records; not checked, and nothing to who reads Parquet."""
    length: int


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
    entries = read_schema(schema.schema_path, f"{place}.schema_path")
    lengths = {name: entry.length for name, entry in entries.items()}
    for ours in [*schema.features, *schema.renamed_features]:
        # Ids and labels may be renamed too in a schema of the original; they are not features.
        if ours not in _FEATURES and (ours in schema.features or not ours.startswith("meta__")):
            raise ConfigError(f"{place}: no feature '{ours}'; features: {', '.join(_FEATURES)}")
    truncation = config.preprocess.truncate_and_slice if config.preprocess is not None else None
    features: dict[str, Feature] = {}
    for ours in _FEATURES:
        column = schema.renamed_features.get(ours, ours)
        asked_for = ours in schema.features or (not schema.features and (column in lengths or ours in lengths))
        if not asked_for and ours not in ("continuous", "binary"):
            continue
        if column not in lengths:
            found = ", ".join(lengths) or "nothing"
            hint = "; converted files have our names: leave renamed_features out" if ours in lengths else ""
            raise ConfigError(f"{place}: '{column}' ({ours}) is not in {schema.schema_path}, which has {found}{hint}")
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


def read_schema(schema_path: str, place: str) -> dict[str, SchemaEntry]:
    """The features in the records, in the order of the schema.

    Args:
      schema_path: the file.
      place: what names it in the configuration or on the command line, for messages.

    Raises:
      ConfigError: the file can't be read or is no such schema.
    """
    file = Path(schema_path).expanduser()
    try:
        listed = json.loads(file.read_text(encoding="utf-8"))["schema"]
        triples = [(entry["feature_name"], entry.get("dtype"), entry["length"]) for entry in listed]
    except OSError as error:
        raise ConfigError(f"{place}: {file} can't be read: {error.strerror} (looked from {Path.cwd()})") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(
            f'{place}: {file} is not of the form {{"schema": [{{"feature_name": ..., "dtype": ..., "length": ...}}]}}: '
            f"{type(error).__name__}: {error}"
        ) from error
    entries: dict[str, SchemaEntry] = {}
    for name, dtype, length in triples:
        if not isinstance(name, str):
            raise ConfigError(f"{place}: {file}: feature_name {name!r}, a string expected")
        if name in entries:
            raise ConfigError(f"{place}: {file} has '{name}' twice")
        if not isinstance(length, int) or isinstance(length, bool) or length < 1:
            raise ConfigError(f"{place}: {file}: the length of '{name}' is {length!r}, a positive integer expected")
        entries[name] = SchemaEntry(dtype, length)
    return entries
