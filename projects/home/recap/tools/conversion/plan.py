"""Which features of the records become which columns, by a data set's configuration or by the schema alone."""

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
    """All that the schema has, in its order: features by our names and cut as `config` says, its tasks as labels.

    Left out, and logged, are lists of bytes, features of several values that `seg_dense_schema.features` leaves out,
    and one whose own name is our name of another.

    Args:
      config: of the data set.
      path: of `config` within the whole configuration, for messages.
      float16: the type of `continuous` and of embeddings, instead of float32.

    Raises:
      ConfigError: the schema can't be read, lacks a feature or a task, or has one of a type or length that it can't
        have; or a value of extract_features is one that is cut off or moved.
    """
    schema = config.seg_dense_schema
    place = f"{path}.seg_dense_schema"
    entries = read_schema(schema.schema_path, f"{place}.schema_path")
    ours = read_features(config, path)
    extracted = _extracted(config, path, ours)
    if missing := [task for task in config.tasks if task not in entries and task not in extracted]:
        raise ConfigError(f"{path}.tasks: {', '.join(missing)} not in {schema.schema_path}")
    names = {theirs: name for name, theirs in schema.renamed_features.items()}
    if len(names) < len(schema.renamed_features):
        twice = sorted({theirs for name, theirs in schema.renamed_features.items() if names[theirs] != name})
        raise ConfigError(f"{place}.renamed_features: two of our names for {', '.join(twice)}")

    def is_left_out(theirs: str, entry: SchemaEntry) -> bool:
        name = names.get(theirs, theirs)
        taken = theirs not in names and theirs in schema.renamed_features
        not_asked_for = name not in ours and (name in _VECTORS or (bool(schema.features) and entry.length > 1))
        return entry.dtype == "bytes_list" or taken or not_asked_for

    left_out = [theirs for theirs, entry in entries.items() if is_left_out(theirs, entry)]
    _log(left_out, schema.schema_path)
    features = []
    for theirs, entry in entries.items():
        if theirs in config.tasks:
            features.append(_label(theirs, entry, f"{place}.schema_path: {schema.schema_path}"))
        elif theirs not in left_out:
            name = names.get(theirs, theirs)
            at = f"{place}.schema_path: {schema.schema_path}"
            features.append(_feature(theirs, entry, name, at, float16, ours.get(name)))
    return features


def features_of_schema(schema_path: str, float16: bool = False) -> list[ExampleFeature]:
    """All that the schema has but lists of bytes, whole and by its names.

    Args:
      schema_path: of the records.
      float16: the type of `continuous` and of embeddings, instead of float32.

    Raises:
      ConfigError: the schema can't be read, or has a type that can't be converted.
    """
    entries = read_schema(schema_path, "--schema")
    if all(entry.dtype == "bytes_list" for entry in entries.values()):
        raise ConfigError(f"--schema {schema_path}: has no float_list or int64_list, nothing to convert")
    _log([name for name, entry in entries.items() if entry.dtype == "bytes_list"], schema_path)
    at = f"--schema {schema_path}"
    return [_feature(name, entry, name, at, float16) for name, entry in entries.items() if entry.dtype != "bytes_list"]


def _extracted(config: RecapDataConfig, path: str, features: Mapping[str, Feature]) -> set[str]:
    """The names of extract_features; checks that their indices, which count values in the files, stay what they are."""
    extract = config.preprocess.extract_features if config.preprocess is not None else None
    table = extract.extract_feature_table if extract is not None else []
    for row in table:
        feature = features.get(row.source_tensor)
        if feature is None or row.index >= feature.width:
            continue  # told when it is read
        kept = feature.positions or range(feature.keep)
        if row.index >= len(kept) or kept[row.index] != row.index:
            raise ConfigError(
                f"{path}.preprocess.extract_features: '{row.name}' is the value {row.index} of {row.source_tensor}, "
                "which truncate_and_slice cuts off or moves; convert without it (--set "
                f"{path}.preprocess.truncate_and_slice=null) and keep it for training"
            )
    return {row.name for row in table}


def _log(left_out: list[str], schema_path: str) -> None:
    if left_out:
        logger.info("of %s not converted: %s", schema_path, ", ".join(left_out))


def _label(name: str, entry: SchemaEntry, at: str) -> ExampleFeature:
    if entry.length != 1:
        raise ConfigError(f"{at}: the label '{name}' has a length of {entry.length}; a label is one value")
    return ExampleFeature(name, _kind(name, entry, at), 1, TableColumn(name, "int8"), largest=1)


def _feature(
    theirs: str, entry: SchemaEntry, name: str, at: str, float16: bool, cut: Feature | None = None
) -> ExampleFeature:
    """The column `name` of the feature `theirs`; `cut` says which values of it are used."""
    kind = _kind(theirs, entry, at)
    if name == "discrete" and kind == "float_list":
        raise ConfigError(f"{at}: '{theirs}' (discrete) is a float_list; ids are an int64_list")
    is_bytes = name == "binary" and kind == "int64_list"
    if name in _FLOATS:
        dtype = "float16" if float16 else "float32"
    else:
        dtype = "uint8" if is_bytes else "float32" if kind == "float_list" else "int64"
    width = entry.length if cut is None else cut.keep
    column = TableColumn(name, dtype, width if name in _VECTORS or entry.length > 1 else None)
    positions = None if cut is None else cut.positions
    return ExampleFeature(theirs, kind, entry.length, column, positions, largest=255 if is_bytes else None)


def _kind(name: str, entry: SchemaEntry, at: str) -> Kind:
    if entry.dtype not in _KINDS:
        raise ConfigError(f"{at}: the dtype of '{name}' is {entry.dtype!r}; float_list or int64_list expected")
    return _KINDS[entry.dtype]
