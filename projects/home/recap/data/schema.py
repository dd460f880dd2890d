"""Which features the records have: the segdense schema, read and checked."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch

from common.errors import ConfigError
from common.process.paths import user_path
from projects.home.recap.data.config import RecapDataConfig
from projects.home.recap.data.masks import read_mask
from projects.home.recap.data.parquet import EMBEDDINGS

_DTYPES = {"continuous": torch.float32, "binary": torch.float32, "discrete": torch.int64}
_FEATURES = (*_DTYPES, *EMBEDDINGS)

# A row of it would take 8 MB.
_LONGEST = 1_000_000

_FLOATS = ("float32", "bfloat16", "float16")
# Ids stay ids, and the values of an embedding are no flags or counts.
_NARROWER = {"continuous": (*_FLOATS, "bool", "uint8"), "binary": (*_FLOATS, "bool", "uint8"), "discrete": ("uint8",)}


@dataclasses.dataclass(frozen=True)
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


@dataclasses.dataclass(frozen=True)
class Feature:
    """A feature in the records."""

    column: str
    dtype: torch.dtype
    """Of what the model computes with."""
    width: int
    """In the files."""
    keep: int
    """So many values are used."""
    positions: tuple[int, ...] | None = None
    """Which ones, ascending; None: the first."""
    narrow: torch.dtype | None = None
    """Of batches; None: dtype."""


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
        width = lengths[column]
        keep, positions = _used_values(config, path, ours, column, width)
        features[ours] = Feature(column, _DTYPES.get(ours, torch.float32), width, keep, positions)
    for ours, narrower in _downcast(config, path, features).items():
        features[ours] = dataclasses.replace(features[ours], narrow=narrower)
    return features


def feature_widths(features: Mapping[str, Feature]) -> FeatureWidths:
    """What the model is built for."""
    return FeatureWidths(
        features["continuous"].keep,
        features["binary"].keep,
        {name: features[name].keep for name in EMBEDDINGS if name in features},
        features["discrete"].keep if "discrete" in features else 0,
    )


def _used_values(
    config: RecapDataConfig, path: str, ours: str, column: str, width: int
) -> tuple[int, tuple[int, ...] | None]:
    """How many of a feature's values are used, and which."""
    slices = config.preprocess.truncate_and_slice if config.preprocess is not None else None
    if slices is None or ours not in ("continuous", "binary"):
        return width, None
    truncation, mask_path = (
        (slices.continuous_feature_truncation, slices.continuous_feature_mask_path)
        if ours == "continuous"
        else (slices.binary_feature_truncation, slices.binary_feature_mask_path)
    )
    place = f"{path}.preprocess.truncate_and_slice.{ours}_feature"
    left = truncation or width
    if left > width:
        raise ConfigError(
            f"{place}_truncation: {left} given, but {config.seg_dense_schema.schema_path} "
            f"says that '{column}' has {width} values"
        )
    if mask_path is None:
        return left, None
    positions = read_mask(mask_path, left, f"{place}_mask_path")
    # A mask that keeps the first values alone is a truncation.
    return len(positions), None if positions[-1] < len(positions) else positions


def _downcast(config: RecapDataConfig, path: str, features: Mapping[str, Feature]) -> dict[str, torch.dtype]:
    """The types that the configuration gives features, checked."""
    downcast = config.preprocess.downcast if config.preprocess is not None else None
    dtypes = (downcast.features if downcast is not None else None) or {}
    for ours, dtype in dtypes.items():
        place = f"{path}.preprocess.downcast.features"
        if ours not in features:
            raise ConfigError(f"{place}: no feature '{ours}'; features that are read: {', '.join(features)}")
        if dtype not in (allowed := _NARROWER.get(ours, _FLOATS)):
            raise ConfigError(f"{place}: {dtype} given for '{ours}', which may be {', '.join(allowed)}")
    return {ours: getattr(torch, dtype) for ours, dtype in dtypes.items()}


def read_schema(schema_path: str, place: str) -> dict[str, SchemaEntry]:
    """The features in the records, in the order of the schema.

    Args:
      schema_path: the file.
      place: what names it in the configuration or on the command line, for messages.

    Raises:
      ConfigError: the file can't be read or is no such schema.
    """
    file = user_path(schema_path)
    try:
        listed = json.loads(file.read_text(encoding="utf-8"))["schema"]
        triples = [(entry["feature_name"], entry.get("dtype"), entry.get("length")) for entry in listed]
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
        if not isinstance(length, int) or isinstance(length, bool) or not 1 <= length <= _LONGEST:
            found = "missing" if length is None else repr(length)
            raise ConfigError(
                f"{place}: {file}: the length of '{name}' is {found}; a whole number from 1 to {_LONGEST:,} expected"
            )
        entries[name] = SchemaEntry(dtype, length)
    return entries
