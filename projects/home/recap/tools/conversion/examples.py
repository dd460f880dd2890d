"""Serialized tf.Examples as the columns of a table, a block of rows at a time.

Absent values, other lengths and other kinds are taken as TensorFlow's parse_example takes them with a FixedLenFeature
of default 0. Which features become which columns is not decided here (conversion_plan.py).
"""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from common.files.table_writer import TableColumn
from projects.home.recap.tools.conversion.example_pb2 import Example, Feature
from projects.home.recap.tools.conversion.tfrecords import RecordError

Kind = Literal["float_list", "int64_list"]

_ROWS_PER_BLOCK = 256

_DTYPES: dict[Kind, type[np.generic]] = {"float_list": np.float32, "int64_list": np.int64}


class ExampleFeature(NamedTuple):
    """A feature of the examples, and the column that it becomes."""

    name: str
    kind: Kind
    length: int
    """Values that an example has of it."""
    column: TableColumn
    positions: tuple[int, ...] | None = None
    """Of the values that go to the column, ascending, as many as it is wide; None: the first."""
    largest: int | None = None
    """A value must be a whole number from 0 to this; None: any."""


@dataclasses.dataclass
class Absences:
    """Features that records were without, and what they have instead."""

    missing: Counter[str] = dataclasses.field(default_factory=Counter)
    """By name of the feature, how many records are without it."""
    unread: set[str] = dataclasses.field(default_factory=set)
    """Names of the features of a file's first record that are not read."""


def read_blocks(
    records: Iterable[bytes], features: Sequence[ExampleFeature], absences: Absences
) -> Iterator[dict[str, NDArray[Any]]]:
    """The rows of some hundred records at a time, by column: [rows] or [rows, width] of the column's dtype.

    An example without a feature has zeros there.

    Args:
      records: the examples.
      features: those to read.
      absences: is told what examples were without.

    Raises:
      RecordError: a record is no tf.Example, or has a feature of another length or kind, or a value that the column
        may not hold.
    """
    names = {feature.name for feature in features}
    blocks = [np.zeros((_ROWS_PER_BLOCK, feature.length), _DTYPES[feature.kind]) for feature in features]
    first = 0
    records = iter(records)
    while batch := list(itertools.islice(records, _ROWS_PER_BLOCK)):
        for row, record in enumerate(batch):
            if first + row == 0:
                absences.unread |= _names(record) - names
            _parse(record, features, [block[row] for block in blocks], first + row, absences.missing)
        yield {
            feature.column.name: _column(block[: len(batch)], feature, first)
            for feature, block in zip(features, blocks, strict=True)
        }
        first += len(batch)


def _names(record: bytes) -> set[str]:
    try:
        return set(Example.FromString(record).features.feature)
    except DecodeError:  # told when it is parsed
        return set()


def _parse(
    record: bytes, features: Sequence[ExampleFeature], rows: Sequence[NDArray[Any]], number: int, missing: Counter[str]
) -> None:
    """Fills a row of each feature's block."""
    try:
        found = Example.FromString(record).features.feature
    except DecodeError as error:
        raise RecordError(f"record {number} (counted from 0): not a tf.Example: {error}") from error
    for feature, row in zip(features, rows, strict=True):
        value = found[feature.name]  # one without a kind where there is none
        numbers = value.float_list.value if feature.kind == "float_list" else value.int64_list.value
        if len(numbers) == feature.length:
            row[:] = np.asarray(numbers) if feature.length > 1 else numbers[0]  # the same, but some times faster
        elif value.WhichOneof("kind") is None:
            row[:] = 0
            missing[feature.name] += 1
        else:
            raise RecordError(
                f"record {number} (counted from 0): feature '{feature.name}': {_describe(value)} found, "
                f"{feature.kind} of {feature.length} expected"
            )


def _describe(value: Feature) -> str:
    kind = value.WhichOneof("kind")
    lengths = {
        "bytes_list": len(value.bytes_list.value),
        "float_list": len(value.float_list.value),
        "int64_list": len(value.int64_list.value),
    }
    return "nothing" if kind is None else f"{kind} of {lengths[kind]}"


def _column(block: NDArray[Any], feature: ExampleFeature, first: int) -> NDArray[Any]:
    """The block [rows, length] as the column has it."""
    if feature.column.width is None:
        kept = block[:, 0]
    elif feature.positions is None:
        kept = block[:, : feature.column.width]
    else:
        kept = np.take(block, feature.positions, axis=1)
    with np.errstate(invalid="ignore", over="ignore"):  # NaN as an integer, too much for float16: are seen below
        values = kept.astype(feature.column.dtype)
    if feature.largest is not None:
        good = (values == kept) & (values >= 0) & (values <= feature.largest)
        allowed = f"whole numbers from 0 to {feature.largest}"
    elif values.dtype == np.float16:
        good, allowed = np.isfinite(values) | ~np.isfinite(kept), "numbers that float16 holds (up to 65504)"
    else:
        return values
    if not good.all():
        row = int(np.nonzero(~good)[0][0])
        found = kept[~good][0]
        raise RecordError(
            f"record {first + row} (counted from 0): feature '{feature.name}': {found} found, {allowed} expected"
        )
    return values
