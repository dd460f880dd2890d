"""Encodes features one row at a time in plain Python, as an independent truth."""

import datetime
import math
import zoneinfo
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import numpy as np
import xxhash

from common.features.config import (
    BooleanFeature,
    CategoriesFeature,
    CategoryFeature,
    EmbeddingFeature,
    Feature,
    Features,
    NumberFeature,
    NumbersFeature,
    TimestampFeature,
)
from core.config import BaseConfig

Encoded = dict[str, list[float]]
"""continuous, binary and ids of a row, and its embeddings by name."""

_SECONDS = {"days": 86400, "hours": 3600, "minutes": 60, "seconds": 1, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


class _Config(BaseConfig):
    features: Features


def parse_features(features: Mapping[str, Mapping[str, Any]]) -> dict[str, Feature]:
    """Return the configuration of features, as a run reads it."""
    return _Config.model_validate({"features": features}).features


def encode_row(
    row: Mapping[str, Any], features: Mapping[str, Feature], vocabularies: Mapping[str, Mapping[Any, int]]
) -> Encoded:
    """Return an encoded row.

    Args:
      row: value of each column.
      features: features by name.
      vocabularies: index of each value, by path.
    """
    out: Encoded = {"continuous": [], "binary": [], "ids": []}
    for name, feature in features.items():
        value = row[feature.column or name]
        if isinstance(feature, NumberFeature):
            _number(value, feature.missing, feature.indicator, out)
        elif isinstance(feature, NumbersFeature):
            assert feature.length is not None
            missing = feature.missing if isinstance(feature.missing, list) else [feature.missing] * feature.length
            for index in range(feature.length):
                _number(None if value is None else value[index], missing[index], feature.indicator, out)
        elif isinstance(feature, BooleanFeature):
            is_missing = value is None or math.isnan(value)
            out["binary"].append(float(feature.missing if is_missing else value))
            if feature.indicator:
                out["binary"].append(float(is_missing))
        elif isinstance(feature, EmbeddingFeature):
            assert feature.length is not None
            numbers = [None] * feature.length if value is None else value
            out[name] = [0.0 if _is_missing(number) else float(np.float32(number)) for number in numbers]
        elif isinstance(feature, CategoryFeature):
            out["ids"] += _rows(value, feature, vocabularies)
        elif isinstance(feature, CategoriesFeature):
            values = [None] if value is None else value[-feature.max_length :]
            rows = [each for element in values for each in _rows(element, feature, vocabularies)]
            out["ids"] += rows + [-1] * (feature.max_length * feature.num_hashes - len(rows))
        else:
            _timestamp(value, row, feature, out)
    return out


def _is_missing(number: Any) -> bool:
    with np.errstate(over="ignore"):
        return number is None or not math.isfinite(np.float32(float(number)))


def _number(number: float | bool | Decimal | None, missing: float | None, indicator: bool, out: Encoded) -> None:
    is_missing = _is_missing(number)
    chosen = missing if is_missing else number
    out["continuous"].append(math.nan if chosen is None else float(np.float32(float(chosen))))
    if indicator:
        out["binary"].append(float(is_missing))


def _rows(
    value: Any, feature: CategoryFeature | CategoriesFeature, vocabularies: Mapping[str, Mapping[Any, int]]
) -> list[float]:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return [0.0, -1.0][: feature.num_hashes]
    value = int(value) if isinstance(value, bool) or (isinstance(value, float) and value.is_integer()) else value
    if feature.vocabulary is not None:
        return [vocabularies[feature.vocabulary].get(value, -1) + 2]
    if feature.num_values is not None:
        return [value + 2 if isinstance(value, int) and 0 <= value < feature.num_values else 1]
    data = value.encode() if isinstance(value, str) else value.to_bytes(8, "little", signed=True)
    rows, seed = [], 42
    for _ in range(feature.num_hashes):
        seed = xxhash.xxh64_intdigest(data, seed)
        rows.append(2.0 + (seed - 2**64 if seed >= 2**63 else seed) % (feature.hash_buckets or 1))
    return rows


def _moment(value: Any, unit: str | None) -> datetime.datetime | None:
    """Return a point in time, rounded down to microseconds."""
    if value is None:
        return None
    if isinstance(value, datetime.datetime):
        return value if value.tzinfo else value.replace(tzinfo=datetime.UTC)
    if isinstance(value, datetime.date):
        return datetime.datetime(value.year, value.month, value.day, tzinfo=datetime.UTC)
    per_second = {"ms": 10**3, "us": 10**6, "ns": 10**9}.get(unit or "", 0)
    microseconds = value * 10**6 // per_second if per_second else value * int(_SECONDS[unit or ""]) * 10**6
    try:
        return _EPOCH + datetime.timedelta(microseconds=int(microseconds))
    except OverflowError:
        return None


def _timestamp(value: Any, row: Mapping[str, Any], feature: TimestampFeature, out: Encoded) -> None:
    moment = _moment(value, feature.unit)
    local = None if moment is None else moment.astimezone(zoneinfo.ZoneInfo(feature.time_zone))
    if feature.hour_of_day:
        out["ids"].append(0 if local is None else local.hour + 2)
    if feature.day_of_week:
        out["ids"].append(0 if local is None else local.weekday() + 2)
    if (age := feature.age) is not None:
        other = _moment(row[age.before], age.before_unit)
        difference = None
        if moment is not None and other is not None:
            difference = (other - moment).total_seconds() / _SECONDS[age.unit]
        _number(difference, age.missing, age.indicator, out)
