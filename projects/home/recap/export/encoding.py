"""Describes how columns become the inputs of an exported ranker: the entries of "encoding" in signature.json.

score.py reads them. An entry fills its part of the inputs; what no entry fills is 0. All columns are counted from 0.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from common.features.config import (
    Age,
    BooleanFeature,
    CategoriesFeature,
    CategoryFeature,
    EmbeddingFeature,
    Feature,
    NumberFeature,
    NumbersFeature,
    TimestampFeature,
)
from common.features.encoder import FeatureEncoder
from common.features.kinds.kind import Places
from common.features.time import seconds_of_unit
from projects.home.recap.data.schema import Feature as StoredFeature
from projects.home.recap.export.flat_ranker import EMBEDDING_PREFIX, RankerInput
from projects.home.recap.model.config import ModelConfig

Entry = dict[str, Any]
"""An entry of "encoding": JSON values by key.

Every entry has a `kind`, the `name` of its feature, and a `column` of the data. The other keys depend on the kind:

numbers: numbers, booleans, embeddings, and vectors of numbers, also those of a schema
  length: numbers per list; null for a column of numbers.
  nullable: whether nulls are allowed. A schema's vectors have none.
  positions: the positions to use of a list, in order; null for all.
  rounded_to: type to which training rounds the numbers before they become the type of the input. A number that doesn't
    fit int64, uint8 or float16 is refused. bool stands for "is not 0".
  missing: replaces a number that is null, NaN, or infinite in that type; one number or one per position.
  input, begin: the input to fill, from this column on.
  indicator: column of binary from which on 1 stands for a missing number, and 0 for others; null without one.
  boolean: whether a number must be 0, 1 or missing.
  num_ids: [position, n] of each position of a list whose values must be ids from 0 to n - 1.
categories: categories and lists of them
  length: null for a column of values; 0 for one of lists, of which a null one has one null value.
  max_length: number of values to use of a list, which are its last ones; 1 for a column of values.
  num_hashes: ids of a value, in adjacent columns.
  begin: the first of max_length * num_hashes columns of ids. -1 follows the last value.
  values: the values to accept: "strings", "integers" or both. Booleans and floats are integers too.
  vocabulary, num_values, hash_buckets: one of them is not null. A missing value, null or NaN, has the id 0, and -1 for
    the second hash. The value with index i in the file `vocabulary`, a JSON list, has the id i + 2, the integer i below
    num_values too, and others the id 1. With n hash_buckets, the id is 2 + the remainder (at least 0) of h / n, where h
    is the signed XXH64, with seed 42, of the UTF-8 bytes of a string or of the 8 little-endian bytes of an integer. The
    second hash has the first one, unsigned, as its seed.
timestamp: points in time in the years 1 to 9999; others are missing
  unit: unit of numbers since 1970-01-01 UTC; null for timestamps and dates, which are UTC without a time zone.
  time_zone: the time zone of the hour and the day.
  hour_of_day, day_of_week: column of ids for 2 + the hour, and 2 + the day after Monday; 0 if missing. null without it.
  age: null, or the time from `column` to another column, as an entry of numbers with the keys `unit` of that column,
    and `seconds`, the unit of the age.
"""


def ignored_features(model: ModelConfig) -> list[str]:
    """Return the configured features that a model uses in training alone: the position, which is unknown in serving."""
    position = model.position_debias_config
    return [] if position is None or position.position_feature is None else [position.position_feature]


def encoding_of_features(
    encoder: FeatureEncoder, inputs: Sequence[RankerInput], vocabularies: Mapping[str, str], ignored: Collection[str]
) -> list[Entry]:
    """Return the entries of configured features.

    Args:
      encoder: encodes them. If it has checked a file, values of hash_buckets must be of the same kind as in the file.
      inputs: inputs of the ranker.
      vocabularies: the export's files of the vocabularies, by their paths in the configuration.
      ignored: names of features that the ranker ignores: their columns are not needed.
    """
    names = {each.name for each in inputs}
    describe = _Features(encoder, names, vocabularies)
    entries = [describe(name, feature) for name, feature in encoder.features.items() if name not in ignored]
    return [entry for entry in entries if entry is not None]


class _Features:
    """Describes features by name."""

    def __init__(self, encoder: FeatureEncoder, inputs: Collection[str], vocabularies: Mapping[str, str]) -> None:
        self._encoder = encoder
        self._inputs = inputs
        self._vocabularies = vocabularies
        self._places = Places.of(encoder.layout)

    def __call__(self, name: str, feature: Feature) -> Entry | None:
        """Return the entry of a feature; None if it fills no input."""
        column = feature.column or name
        match feature:
            case CategoryFeature() | CategoriesFeature():
                return self._categories(name, column, feature)
            case TimestampFeature():
                return self._timestamp(name, column, feature)
            case NumberFeature():
                return self._number(name, column, name, feature)
            case NumbersFeature():
                return self._number(name, column, f"{name}[0]", feature) | {"length": feature.length}
            case EmbeddingFeature():
                return _numbers(name, column, EMBEDDING_PREFIX + name, length=feature.length)
            case BooleanFeature():
                if "binary" not in self._inputs:
                    return None
                begin = self._places.binary[name]
                indicator = begin + 1 if feature.indicator else None
                entry = _numbers(name, column, "binary", begin=begin, indicator=indicator, boolean=True)
                return entry | {"missing": int(feature.missing)}

    def _number(self, name: str, column: str, first: str, number: NumberFeature | NumbersFeature | Age) -> Entry:
        """Return the entry of numbers, of which the first one has the name `first` in the layout."""
        has_indicator = number.indicator and "binary" in self._inputs
        indicator = self._places.binary[f"{first}.missing"] if has_indicator else None
        entry = _numbers(name, column, "continuous", begin=self._places.continuous[first], indicator=indicator)
        return entry | {"missing": number.missing}

    def _categories(self, name: str, column: str, feature: CategoryFeature | CategoriesFeature) -> Entry:
        lookup = self._places.lookups[name]
        accepted = self._encoder.accepted_values(lookup.table)
        return _entry(
            "categories",
            name,
            column,
            length=0 if isinstance(feature, CategoriesFeature) else None,
            max_length=lookup.length,
            num_hashes=lookup.num_hashes,
            begin=lookup.begin,
            values=["strings", "integers"] if accepted is None else [accepted],
            vocabulary=None if feature.vocabulary is None else self._vocabularies[feature.vocabulary],
            num_values=feature.num_values,
            hash_buckets=feature.hash_buckets,
        )

    def _timestamp(self, name: str, column: str, feature: TimestampFeature) -> Entry:
        age, entry_of_age = feature.age, None
        if age is not None:
            entry_of_age = self._number(name, age.before, f"{name}.age", age)
            entry_of_age |= {"unit": age.before_unit, "seconds": seconds_of_unit(age.unit)}
        lookups = {part: self._places.lookups.get(f"{name}.{part}") for part in ("hour_of_day", "day_of_week")}
        ids = {part: None if lookup is None else lookup.begin for part, lookup in lookups.items()}
        return _entry(
            "timestamp",
            name,
            column,
            length=None,
            unit=feature.unit,
            time_zone=feature.time_zone,
            **ids,
            age=entry_of_age,
        )


def encoding_of_schema(
    features: Mapping[str, StoredFeature], inputs: Sequence[RankerInput], num_ids: Mapping[int, int]
) -> list[Entry]:
    """Return the entries of the features of a schema.

    Args:
      features: features of the schema by name.
      inputs: inputs of the ranker.
      num_ids: number of valid ids by position in the discrete features.
    """
    names = {each.name for each in inputs}
    return [
        _numbers(
            name,
            feature.column,
            name,
            length=feature.width,
            nullable=False,
            positions=None if feature.keep == feature.width else list(feature.positions or range(feature.keep)),
            rounded_to=str(feature.narrow or feature.dtype).removeprefix("torch."),
            num_ids=[list(each) for each in num_ids.items()] if name == "discrete" else [],
        )
        for name, feature in features.items()
        if name in names
    ]


def _numbers(name: str, column: str, input_name: str, **others: Any) -> Entry:
    """Return an entry of numbers with the usual values, except `others`."""
    usual: Entry = {
        "length": None,
        "nullable": True,
        "positions": None,
        "rounded_to": "float32",
        "missing": 0.0,
        "begin": 0,
    }
    usual |= {"indicator": None, "boolean": False, "num_ids": []}
    return _entry("numbers", name, column, input=input_name, **(usual | others))


def _entry(kind: str, name: str, column: str, **others: Any) -> Entry:
    return {"kind": kind, "name": name, "column": column, **others}
