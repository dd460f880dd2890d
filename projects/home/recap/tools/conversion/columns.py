"""Chooses which features of the records become which columns.

The choice follows the configuration of a data set, or the schema alone. examples.py reads the records.
"""

import logging
from collections.abc import Mapping

from common.errors import ConfigError
from common.files.table_writer import TableColumn
from projects.home.recap.data.config import RecapDataConfig
from projects.home.recap.data.parquet import EMBEDDINGS
from projects.home.recap.data.schema import Feature, SchemaEntry, read_features, read_schema
from projects.home.recap.tools.conversion.examples import ExampleFeature, Kind

logger = logging.getLogger(__name__)

_FLOATS = ("continuous", *EMBEDDINGS)
_VECTORS = ("binary", "discrete", *_FLOATS)
_KINDS: Mapping[object, Kind] = {"float_list": "float_list", "int64_list": "int64_list"}


def features_of_config(config: RecapDataConfig, path: str, float16: bool = False) -> list[ExampleFeature]:
    """Return the features that a data set needs, in the order of its schema.

    Features get the project's names and are cut as `config` says. The tasks become labels. Three kinds of features are
    skipped and logged: lists of bytes; features of several values that `seg_dense_schema.features` does not list; and a
    feature whose own name is the project's name of another feature.

    Args:
      config: configuration of the data set.
      path: path of `config` within the whole configuration, for messages.
      float16: store `continuous` and the embeddings as float16 instead of float32.

    Raises:
      ConfigError: the schema cannot be read, lacks a feature or a task, or gives one an invalid type or length; or
        truncate_and_slice cuts off or moves a value that extract_features reads.
    """
    selected = read_features(config, path)
    schema = config.seg_dense_schema
    assert schema is not None
    schema_key = f"{path}.seg_dense_schema"
    entries = read_schema(schema.schema_path, f"{schema_key}.schema_path")
    extracted = _extracted(config, path, selected)
    if missing := [task for task in config.tasks if task not in entries and task not in extracted]:
        raise ConfigError(f"{path}.tasks: {', '.join(missing)} not in {schema.schema_path}")
    renames = {original: name for name, original in schema.renamed_features.items()}
    if len(renames) < len(schema.renamed_features):
        twice = sorted({original for name, original in schema.renamed_features.items() if renames[original] != name})
        raise ConfigError(f"{schema_key}.renamed_features: more than one key maps to {', '.join(twice)}. Keep one")

    def is_skipped(original: str, entry: SchemaEntry) -> bool:
        name = renames.get(original, original)
        name_is_taken = original not in renames and original in schema.renamed_features
        is_unwanted = name not in selected and (name in _VECTORS or (bool(schema.features) and entry.length > 1))
        return entry.dtype == "bytes_list" or name_is_taken or is_unwanted

    skipped = [original for original, entry in entries.items() if is_skipped(original, entry)]
    _log_skipped(skipped, schema.schema_path)
    features = []
    where = f"{schema_key}.schema_path: {schema.schema_path}"
    for original, entry in entries.items():
        if original in config.tasks:
            features.append(_label(original, entry, where))
        elif original not in skipped:
            name = renames.get(original, original)
            features.append(_feature(original, entry, name, where, float16, selected.get(name)))
    return features


def features_of_schema(schema_path: str, float16: bool = False) -> list[ExampleFeature]:
    """Return all features of a schema except lists of bytes, with all values and under their own names.

    Args:
      schema_path: path of the schema of the records.
      float16: store `continuous` and the embeddings as float16 instead of float32.

    Raises:
      ConfigError: the schema cannot be read, has nothing to convert, or has a type that cannot be converted.
    """
    entries = read_schema(schema_path, "--schema")
    if all(entry.dtype == "bytes_list" for entry in entries.values()):
        raise ConfigError(f"--schema {schema_path}: nothing to convert, because it has no float_list and no int64_list")
    _log_skipped([name for name, entry in entries.items() if entry.dtype == "bytes_list"], schema_path)
    where = f"--schema {schema_path}"
    return [
        _feature(name, entry, name, where, float16) for name, entry in entries.items() if entry.dtype != "bytes_list"
    ]


def _extracted(config: RecapDataConfig, path: str, features: Mapping[str, Feature]) -> set[str]:
    """Return the names of extract_features.

    Raises:
      ConfigError: truncate_and_slice cuts off or moves a value. The indices of extract_features count values in the
        files, so the values must stay where they are.
    """
    extract = config.preprocess.extract_features if config.preprocess is not None else None
    table = extract.extract_feature_table if extract is not None else []
    for row in table:
        feature = features.get(row.source_tensor)
        if feature is None or row.index >= feature.width:
            continue  # reported when a run reads the feature
        kept = feature.positions or range(feature.keep)
        if row.index >= len(kept) or kept[row.index] != row.index:
            raise ConfigError(
                f"{path}.preprocess.extract_features: '{row.name}' is value {row.index} of {row.source_tensor}, which "
                "truncate_and_slice cuts off or moves. Convert without it (--set "
                f"{path}.preprocess.truncate_and_slice=null) and keep it for training"
            )
    return {row.name for row in table}


def _log_skipped(skipped: list[str], schema_path: str) -> None:
    if skipped:
        logger.info("%s: features that are not converted: %s", schema_path, ", ".join(skipped))


def _label(name: str, entry: SchemaEntry, where: str) -> ExampleFeature:
    if entry.length != 1:
        raise ConfigError(f"{where}: the label '{name}' has length {entry.length}, but a label is a single value")
    return ExampleFeature(name, _kind(name, entry, where), 1, TableColumn(name, "int8"), largest=1)


def _feature(
    original: str, entry: SchemaEntry, name: str, where: str, float16: bool, cut: Feature | None = None
) -> ExampleFeature:
    """Return the feature `original` with its column `name`.

    Args:
      original: name of the feature in the records.
      entry: schema entry of the feature.
      name: name of the column.
      where: start of error messages.
      float16: store `continuous` and the embeddings as float16.
      cut: selects the values to keep. None keeps all.
    """
    kind = _kind(original, entry, where)
    if name == "discrete" and kind == "float_list":
        raise ConfigError(f"{where}: '{original}' (discrete) is a float_list, but ids must be an int64_list")
    is_bytes = name == "binary" and kind == "int64_list"
    if name in _FLOATS:
        dtype = "float16" if float16 else "float32"
    else:
        dtype = "uint8" if is_bytes else "float32" if kind == "float_list" else "int64"
    width = entry.length if cut is None else cut.keep
    column = TableColumn(name, dtype, width if name in _VECTORS or entry.length > 1 else None)
    positions = None if cut is None else cut.positions
    return ExampleFeature(original, kind, entry.length, column, positions, largest=255 if is_bytes else None)


def _kind(name: str, entry: SchemaEntry, where: str) -> Kind:
    if entry.dtype not in _KINDS:
        raise ConfigError(f"{where}: '{name}' has dtype {entry.dtype!r}, expected float_list or int64_list")
    return _KINDS[entry.dtype]
