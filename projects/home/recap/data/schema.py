"""Reads and checks the segdense schema, which lists the features of the records."""

import dataclasses
import hashlib
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

# A row of such a feature takes up to 8 MB.
_MAX_LENGTH = 1_000_000

_FLOATS = ("float32", "bfloat16", "float16")
# Discrete ids must stay integers; embeddings are neither flags nor counts.
_NARROWER = {"continuous": (*_FLOATS, "bool", "uint8"), "binary": (*_FLOATS, "bool", "uint8"), "discrete": ("uint8",)}


@dataclasses.dataclass(frozen=True)
class FeatureWidths:
    """Number of values per feature as the model receives them."""

    continuous: int
    binary: int
    embeddings: Mapping[str, int]
    discrete: int = 0
    """0 if the data has none."""


class SchemaEntry(NamedTuple):
    """A feature's entry in the schema."""

    dtype: object
    """"float_list" or "int64_list". Not checked, because Parquet files have their own types."""
    length: int
    """Number of values."""


@dataclasses.dataclass(frozen=True)
class Feature:
    """A feature of the records, and the part of it that is used.

    Attributes:
      column: name of its column in the files.
      dtype: type in which the model computes.
      width: number of values per row in the files.
      keep: number of values that are used.
      positions: positions of the used values, ascending; None means the first `keep` values.
      narrow: type in batches; None means `dtype`.
    """

    column: str
    dtype: torch.dtype
    width: int
    keep: int
    positions: tuple[int, ...] | None = None
    narrow: torch.dtype | None = None

    def description(self) -> str:
        """Return a text that differs if other values are read."""
        used = f"{self.keep} of the {self.width} values of '{self.column}'"
        if self.positions is None:
            return used
        digest = hashlib.blake2b(json.dumps(self.positions).encode(), digest_size=8).hexdigest()
        return f"{used}, selected by a mask with digest {digest}"


def read_features(config: RecapDataConfig, key_path: str) -> dict[str, Feature]:
    """Return the features that the configuration of a data set selects, by name.

    Args:
      config: configuration of the data set.
      key_path: path of `config` within the whole configuration, for messages.

    Raises:
      ConfigError: the schema cannot be read, or lacks a selected feature.
    """
    schema = config.seg_dense_schema
    schema_key = f"{key_path}.seg_dense_schema"
    if schema is None:
        raise ConfigError(f"{schema_key}: missing. Name the schema of the records")
    entries = read_schema(schema.schema_path, f"{schema_key}.schema_path")
    lengths = {name: entry.length for name, entry in entries.items()}
    for name in [*schema.features, *schema.renamed_features]:
        # The original's YAML also renames ids, which are not features.
        if name not in _FEATURES and (name in schema.features or not name.startswith("meta__")):
            raise ConfigError(f"{schema_key}: unknown feature '{name}'; allowed: {', '.join(_FEATURES)}")
    features: dict[str, Feature] = {}
    for name in _FEATURES:
        column = schema.renamed_features.get(name, name)
        selected = name in schema.features or (not schema.features and (column in lengths or name in lengths))
        if not selected and name not in ("continuous", "binary"):
            continue
        if column not in lengths:
            available = ", ".join(lengths) or "no features"
            hint = ". Converted files use the standard names: remove renamed_features" if name in lengths else ""
            raise ConfigError(
                f"{schema_key}: '{column}' ({name}) is not in {schema.schema_path}, which has {available}{hint}"
            )
        width = lengths[column]
        keep, positions = _used_values(config, key_path, name, column, width)
        features[name] = Feature(column, _DTYPES.get(name, torch.float32), width, keep, positions)
    for name, narrower in _downcast(config, key_path, features).items():
        features[name] = dataclasses.replace(features[name], narrow=narrower)
    return features


def feature_widths(features: Mapping[str, Feature]) -> FeatureWidths:
    """Return the widths for which to build the model."""
    return FeatureWidths(
        features["continuous"].keep,
        features["binary"].keep,
        {name: features[name].keep for name in EMBEDDINGS if name in features},
        features["discrete"].keep if "discrete" in features else 0,
    )


def _used_values(
    config: RecapDataConfig, key_path: str, name: str, column: str, width: int
) -> tuple[int, tuple[int, ...] | None]:
    """Return the number of values of a feature that are used, and their positions (None for the first)."""
    slices = config.preprocess.truncate_and_slice if config.preprocess is not None else None
    assert config.seg_dense_schema is not None
    if slices is None or name not in ("continuous", "binary"):
        return width, None
    truncation, mask_path = (
        (slices.continuous_feature_truncation, slices.continuous_feature_mask_path)
        if name == "continuous"
        else (slices.binary_feature_truncation, slices.binary_feature_mask_path)
    )
    key_prefix = f"{key_path}.preprocess.truncate_and_slice.{name}_feature"
    remaining = truncation or width
    if remaining > width:
        raise ConfigError(
            f"{key_prefix}_truncation is {remaining}, but '{column}' has {width} values according to "
            f"{config.seg_dense_schema.schema_path}"
        )
    if mask_path is None:
        return remaining, None
    positions = read_mask(mask_path, remaining, f"{key_prefix}_mask_path")
    # A mask that keeps only the first values is a truncation.
    return len(positions), None if positions[-1] < len(positions) else positions


def _downcast(config: RecapDataConfig, key_path: str, features: Mapping[str, Feature]) -> dict[str, torch.dtype]:
    """Return the narrower types that the configuration assigns to features, after checking them."""
    downcast = config.preprocess.downcast if config.preprocess is not None else None
    dtypes = (downcast.features if downcast is not None else None) or {}
    downcast_key = f"{key_path}.preprocess.downcast.features"
    for name, dtype in dtypes.items():
        if name not in features:
            raise ConfigError(
                f"{downcast_key}: '{name}' is not one of the features that are read: {', '.join(features)}"
            )
        if dtype not in (allowed := _NARROWER.get(name, _FLOATS)):
            raise ConfigError(f"{downcast_key}: '{name}' cannot be {dtype}; allowed: {', '.join(allowed)}")
    return {name: getattr(torch, dtype) for name, dtype in dtypes.items()}


def read_schema(schema_path: str, where: str) -> dict[str, SchemaEntry]:
    """Return the entries of a schema file by feature name, in file order.

    Args:
      schema_path: path of the file.
      where: configuration key or command-line option that names the file, for messages.

    Raises:
      ConfigError: the file cannot be read or is not a valid schema.
    """
    file = user_path(schema_path)
    try:
        listed = json.loads(file.read_text(encoding="utf-8-sig"))["schema"]
        triples = [(entry["feature_name"], entry.get("dtype"), entry.get("length")) for entry in listed]
    except OSError as error:
        raise ConfigError(f"{where}: cannot read {file}: {error.strerror} (current directory: {Path.cwd()})") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(
            f'{where}: {file} is not of the form {{"schema": [{{"feature_name": ..., "dtype": ..., "length": ...}}]}}: '
            f"{type(error).__name__}: {error}"
        ) from error
    entries: dict[str, SchemaEntry] = {}
    for name, dtype, length in triples:
        if not isinstance(name, str):
            raise ConfigError(f"{where}: {file}: feature_name {name!r} is not a string")
        if name in entries:
            raise ConfigError(f"{where}: {file} lists '{name}' twice")
        if not isinstance(length, int) or isinstance(length, bool) or not 1 <= length <= _MAX_LENGTH:
            found = "missing" if length is None else repr(length)
            raise ConfigError(
                f"{where}: {file}: the length of '{name}' is {found}, but must be an integer from 1 to {_MAX_LENGTH:,}"
            )
        entries[name] = SchemaEntry(dtype, length)
    return entries
