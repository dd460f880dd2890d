"""Configures features: the columns of a table that a model reads, and how it reads them."""

import itertools
import struct
import zoneinfo
from collections.abc import Iterator, Mapping
from typing import Annotated, Literal, Self

import pydantic

from core.config.base_config import BaseConfig
from core.config.names import check_printable
from core.config.numbers import Float32, NonNegativeFloat32, Size

MISSING_ROW, UNKNOWN_ROW, FIRST_VALUE_ROW = 0, 1, 2
"""Rows of every table of a category: that of missing values, that of unknown values, and the first row of a value."""

MAX_VALUES = 100_000
"""Maximum number of values or hash buckets of a table, which every process holds as a whole."""

# The width of a bucket must be finite in float32.
_LARGEST_WIDTH = 3.4e38

Unit = Literal["days", "hours", "minutes", "seconds", "ms", "us", "ns"]
"""Unit of time."""

_NumValues = Annotated[int, pydantic.Field(gt=0)]
_Edges = Annotated[list[Float32], pydantic.Field(min_length=2)]
_Buckets = Annotated[int, pydantic.Field(ge=2, le=256)]


class _Feature(BaseConfig):
    column: str | None = pydantic.Field(
        None, min_length=1, description="Column in the files; null means the name of the feature."
    )


class _Numeric(BaseConfig):
    """Base of what configures a number as the model receives it."""

    missing: Float32 | None = pydantic.Field(
        None,
        description="Number that replaces null and NaN. null means the mean of the training data, which is computed at "
        "the start and stored in the run's configuration.",
    )
    indicator: bool = pydantic.Field(
        False, description="Add a binary value that is 1 if the number is missing, and 0 otherwise."
    )
    buckets: _Buckets | None = pydantic.Field(
        None,
        description="Maximum number of buckets of a piecewise-linear encoding (arXiv 2203.05556, section 3.2.1), which "
        "replaces the number; null uses the number itself.",
    )
    edges: _Edges | None = pydantic.Field(
        None,
        description="Edges of the buckets, in ascending order. null computes them from quantiles of the rows and of "
        "the distinct values of the training data, and stores them in the run's configuration.",
    )

    @pydantic.model_validator(mode="after")
    def _edges_fit(self) -> Self:
        if self.edges is not None:
            _check_edges(self.edges, self.buckets)
        return self


class NumberFeature(_Feature, _Numeric):
    """A number: any integer, float, decimal or boolean."""

    kind: Literal["number"] = pydantic.Field(description="Kind of the feature.")


class NumbersFeature(_Feature):
    """A vector of numbers, each of which enters the model like a number."""

    kind: Literal["numbers"] = pydantic.Field(description="Kind of the feature.")
    length: Size | None = pydantic.Field(
        None, description="Numbers per row; null takes the length of the column in the training data, if it is fixed."
    )
    missing: Float32 | list[Float32] | None = pydantic.Field(
        None,
        description="Number that replaces null and NaN, or one per position. null means the means of the training "
        "data, which are computed at the start and stored in the run's configuration.",
    )
    indicator: bool = pydantic.Field(
        False, description="Add a binary value per position that is 1 if the number is missing, and 0 otherwise."
    )
    buckets: _Buckets | None = pydantic.Field(
        None,
        description="Maximum number of buckets of each number's piecewise-linear encoding; null uses the numbers "
        "themselves.",
    )
    edges: list[_Edges] | None = pydantic.Field(
        None,
        description="Edges of the buckets of each position, in ascending order; null computes them from the training "
        "data, and stores them in the run's configuration.",
    )

    @pydantic.model_validator(mode="after")
    def _values_fit(self) -> Self:
        for edges in self.edges or ():
            _check_edges(edges, self.buckets)
        for name, values in (("missing", self.missing), ("edges", self.edges)):
            if isinstance(values, list) and len(values) != self.length:
                raise ValueError(
                    f"{name} has {len(values)} items, but length is {self.length}. Give one item per position"
                )
        return self


class BooleanFeature(_Feature):
    """A boolean, or an integer that is 0 or 1."""

    kind: Literal["boolean"] = pydantic.Field(description="Kind of the feature.")
    missing: bool = pydantic.Field(False, description="Value that replaces null.")
    indicator: bool = pydantic.Field(
        False, description="Add a binary value that is 1 if the value is missing, and 0 otherwise."
    )


class _Encoded(_Feature):
    """Base of what maps values to rows of an embedding table."""

    vocabulary: str | None = pydantic.Field(
        None,
        min_length=1,
        json_schema_extra={"one_of": "encoding"},
        description="Path of a Parquet file with the columns value (strings or integers), index (0 to n - 1) and, "
        "optionally, count (occurrences in the training data). The value with index i has row i + 2.",
    )
    num_values: _NumValues | None = pydantic.Field(
        None,
        json_schema_extra={"one_of": "encoding"},
        description="Number of values, which are integers from 0. The value i has row i + 2; others are unknown.",
    )
    hash_buckets: _NumValues | None = pydantic.Field(
        None,
        json_schema_extra={"one_of": "encoding"},
        description="Number n of buckets. A value has row 2 + pmod(XXH64 with seed 42, n), as in Spark.",
    )
    num_hashes: Literal[1, 2] = pydantic.Field(
        1, description="hash_buckets only: number of hashes. With 2, the embedding of a value is the sum of two rows."
    )
    table: str | None = pydantic.Field(
        None,
        min_length=1,
        description="Name of the embedding table. Features with the same table look up the same rows, and must encode "
        "values alike. null means the name of the feature.",
    )
    embedding_dim: Size | None = pydantic.Field(
        None,
        description="Number of values per embedding; null means 4 times the fourth root of the number of rows, with "
        "the root rounded up, and at most 64.",
    )
    unknown_pseudo_count: NonNegativeFloat32 = pydantic.Field(
        0.25,
        description="Training only: a value that occurs n times in the training data is replaced by the unknown row "
        "with probability c / (c + n), where c is this number (arXiv 1603.04351, section 3), so that the unknown row "
        "is trained. n is the vocabulary's count, or 25 without one. 0 replaces nothing.",
    )

    @pydantic.field_validator("vocabulary")
    @classmethod
    def _is_local(cls, path: str | None) -> str | None:
        if path is not None and "://" in path:
            raise ValueError("remote URLs are not supported. Copy the file, and give its path")
        return path

    @pydantic.field_validator("num_values", "hash_buckets")
    @classmethod
    def _is_small(cls, number: int | None) -> int | None:
        if number is not None and number > MAX_VALUES:
            raise ValueError(too_many_values(number))
        return number

    @pydantic.model_validator(mode="after")
    def _hashes_apply(self) -> Self:
        if self.num_hashes != 1 and self.hash_buckets is None:
            raise ValueError("num_hashes applies only to hash_buckets. Set hash_buckets, or remove num_hashes")
        return self


class CategoryFeature(_Encoded):
    """A category: strings or integers, each of which has an embedding."""

    kind: Literal["category"] = pydantic.Field(description="Kind of the feature.")


class CategoriesFeature(_Encoded):
    """A list of categories, whose embeddings are pooled. An empty list gives zeros, a null list the missing row."""

    kind: Literal["categories"] = pydantic.Field(description="Kind of the feature.")
    pooling: Literal["mean", "sum"] = pydantic.Field("mean", description="How the embeddings of a list are combined.")
    max_length: int = pydantic.Field(
        50, gt=0, le=10_000, description="Number of values to use of a list; of a longer list, the last ones."
    )


class Age(_Numeric):
    """The time from a timestamp to another one, as a number."""

    before: str = pydantic.Field(min_length=1, description="Column of the other, usually later, timestamp.")
    before_unit: Unit | None = pydantic.Field(
        None, description="Unit of the other timestamp if it is an integer: time since 1970-01-01 UTC."
    )
    unit: Unit = pydantic.Field("hours", description="Unit of the age.")


class TimestampFeature(_Feature):
    """A point in time: a timestamp, a date, or an integer with a unit. A timestamp without a time zone is UTC."""

    kind: Literal["timestamp"] = pydantic.Field(description="Kind of the feature.")
    unit: Unit | None = pydantic.Field(
        None, description="Unit of a column of integers: time since 1970-01-01 UTC. null for timestamps and dates."
    )
    time_zone: str = pydantic.Field(
        "UTC", min_length=1, description="Time zone of the hour and the day, such as Europe/Berlin."
    )
    hour_of_day: bool = pydantic.Field(True, description="Add the hour of the day, as a category.")
    day_of_week: bool = pydantic.Field(True, description="Add the day of the week, as a category.")
    age: Age | None = pydantic.Field(None, description="Add the time to another timestamp, as a number.")

    @pydantic.field_validator("time_zone")
    @classmethod
    def _exists(cls, time_zone: str) -> str:
        try:
            zoneinfo.ZoneInfo(time_zone)
        except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError(
                f"there is no time zone {time_zone!r}. Write a name such as Europe/Berlin or UTC"
            ) from None
        return time_zone

    @pydantic.model_validator(mode="after")
    def _yields_something(self) -> Self:
        if not (self.hour_of_day or self.day_of_week or self.age):
            raise ValueError("hour_of_day and day_of_week are false, and age is null, so nothing is read. Set one")
        return self


class EmbeddingFeature(_Feature):
    """A vector that enters the model as a part of its own, with a layer norm of its own. A null vector is zeros."""

    kind: Literal["embedding"] = pydantic.Field(description="Kind of the feature.")
    length: Size | None = pydantic.Field(
        None, description="Numbers per row; null takes the length of the column in the training data, if it is fixed."
    )


Feature = Annotated[
    NumberFeature
    | NumbersFeature
    | BooleanFeature
    | CategoryFeature
    | CategoriesFeature
    | TimestampFeature
    | EmbeddingFeature,
    pydantic.Field(discriminator="kind"),
]


def _check_features(features: Mapping[str, Feature]) -> Mapping[str, Feature]:
    for name in features:
        check_printable(name)
    first: dict[str, tuple[str, CategoryFeature | CategoriesFeature]] = {}
    for name, feature in features.items():
        if isinstance(feature, CategoryFeature | CategoriesFeature):
            other_name, other = first.setdefault(feature.table or name, (name, feature))
            for key in (
                "vocabulary",
                "num_values",
                "hash_buckets",
                "num_hashes",
                "embedding_dim",
                "unknown_pseudo_count",
            ):
                if (own := getattr(feature, key)) != (others := getattr(other, key)):
                    raise ValueError(
                        f"{other_name} and {name} use the table {feature.table or name}, but {other_name}.{key} is "
                        f"{others} and {name}.{key} is {own}. Make them equal, or use two tables"
                    )
    makers = {("an embedding table", table): name for table, (name, _) in first.items()}
    for name, feature in features.items():
        for made in _made_by(name, feature):
            if (maker := makers.setdefault(made, name)) != name:
                what, called = made
                raise ValueError(f"{maker} and {name} both make {what} named {called}. Rename a feature or a table")
    return features


def _made_by(name: str, feature: Feature) -> Iterator[tuple[str, str]]:
    """Yield what a feature makes that no other feature may make: what it is, and its name."""
    match feature:
        case TimestampFeature():
            for part in ("hour_of_day", "day_of_week"):
                yield "categories", f"{name}.{part}"
                yield "an embedding table", f"{name}.{part}"
        case BooleanFeature():
            yield "a binary value", name
            if feature.indicator:
                yield "a binary value", f"{name}.missing"
        case CategoryFeature() | CategoriesFeature():
            yield "categories", name
    for number, indicator in _numbers_of(name, feature).items():
        yield "a number", number
        if indicator:
            yield "a binary value", f"{number}.missing"


def _numbers_of(name: str, feature: Feature) -> dict[str, bool]:
    """Return the names of the numbers of a feature, with whether each has an indicator."""
    match feature:
        case NumberFeature():
            return {name: feature.indicator}
        case NumbersFeature():
            return {f"{name}[{index}]": feature.indicator for index in range(feature.length or 0)}
        case TimestampFeature(age=Age() as age):
            return {f"{name}.age": age.indicator}
    return {}


Features = Annotated[dict[str, Feature], pydantic.Field(min_length=1), pydantic.AfterValidator(_check_features)]
"""Features by name."""


def columns_of(name: str, feature: Feature) -> list[str]:
    """Return the names of the columns that a feature of this name reads."""
    columns = [feature.column or name]
    if isinstance(feature, TimestampFeature) and feature.age is not None:
        columns.append(feature.age.before)
    return columns


def default_embedding_dim(num_rows: int) -> int:
    """Return the default number of values per embedding of a table: 4 * ceil(num_rows ** 0.25), at most 64."""
    root = 1
    while root**4 < num_rows:
        root += 1
    return min(64, 4 * root)


def too_many_values(number: int) -> str:
    """Return the message about a table with too many values."""
    return (
        f"a table of {number:,} values is larger than {MAX_VALUES:,}, which is the most that every process can hold as "
        "a whole. Larger tables come later; until then, use hash_buckets with a smaller number, or a vocabulary of the "
        "most frequent values"
    )


def _check_edges(edges: list[float], buckets: int | None) -> None:
    if buckets is None:
        raise ValueError("edges are set, but buckets is null. Set buckets, or remove edges")
    if len(edges) > buckets + 1:
        raise ValueError(f"{len(edges)} edges make more than {buckets} buckets. Raise buckets, or remove edges")
    rounded = [struct.unpack("f", struct.pack("f", edge))[0] for edge in edges]
    if any(low >= high for low, high in itertools.pairwise(rounded)):
        raise ValueError("edges must be in ascending order, and differ in float32")
    if edges[-1] - edges[0] > _LARGEST_WIDTH:
        raise ValueError(f"the last edge minus the first one must be at most {_LARGEST_WIDTH:g}")
