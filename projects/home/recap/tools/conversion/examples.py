"""Decodes serialized tf.Examples into columns, one block of rows at a time.

Handles missing values, wrong lengths and wrong kinds as TensorFlow's parse_example does for a FixedLenFeature with the
default 0. columns.py decides which features become which columns.
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
    """A feature of the examples and the column that it is converted to."""

    name: str
    kind: Kind
    length: int
    """Number of values in an example."""
    column: TableColumn
    positions: tuple[int, ...] | None = None
    """Ascending positions of the values to keep, one per value of the column. None keeps the first values."""
    largest: int | None = None
    """Values must be integers from 0 to this limit. None allows any value."""


@dataclasses.dataclass
class Absences:
    """Collects the features that records lack, and the features that they have but the schema does not."""

    missing: Counter[str] = dataclasses.field(default_factory=Counter)
    """Number of records that lack a feature, by its name."""
    unread: set[str] = dataclasses.field(default_factory=set)
    """Names of the features in a file's first record that are not converted."""


def read_blocks(
    records: Iterable[bytes], features: Sequence[ExampleFeature], absences: Absences
) -> Iterator[dict[str, NDArray[Any]]]:
    """Yield blocks of up to 256 rows: arrays by column name, [rows] or [rows, width], in the column's dtype.

    A feature that an example lacks becomes zeros.

    Args:
      records: serialized examples.
      features: features to read.
      absences: updated with the features that the examples lack.

    Raises:
      RecordError: a record is not a tf.Example, has a feature of the wrong length or kind, or has a value that the
        column does not allow.
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
    except DecodeError:  # reported when the record is parsed
        return set()


def _parse(
    record: bytes, features: Sequence[ExampleFeature], rows: Sequence[NDArray[Any]], number: int, missing: Counter[str]
) -> None:
    """Write the values of a record to its row of each feature's block."""
    try:
        values = Example.FromString(record).features.feature
    except DecodeError as error:
        raise RecordError(f"record {number} (counted from 0): not a tf.Example: {error}") from error
    for feature, row in zip(features, rows, strict=True):
        value = values[feature.name]  # a missing feature yields a message without a kind
        numbers = value.float_list.value if feature.kind == "float_list" else value.int64_list.value
        if len(numbers) == feature.length:
            row[:] = np.asarray(numbers) if feature.length > 1 else numbers[0]  # numbers[0] is several times faster
        elif value.WhichOneof("kind") is None:
            row[:] = 0
            missing[feature.name] += 1
        else:
            raise RecordError(
                f"record {number} (counted from 0): feature '{feature.name}': expected {feature.kind} of length "
                f"{feature.length}, found {_describe(value)}"
            )


def _describe(value: Feature) -> str:
    """Return the kind and length of a feature that has a kind."""
    kind = value.WhichOneof("kind")
    assert kind is not None
    lengths = {
        "bytes_list": len(value.bytes_list.value),
        "float_list": len(value.float_list.value),
        "int64_list": len(value.int64_list.value),
    }
    return f"{kind} of length {lengths[kind]}"


def _column(block: NDArray[Any], feature: ExampleFeature, first: int) -> NDArray[Any]:
    """Select and convert the values of a block [rows, length] to those of the column."""
    if feature.column.width is None:
        kept = block[:, 0]
    elif feature.positions is None:
        kept = block[:, : feature.column.width]
    else:
        kept = np.take(block, feature.positions, axis=1)
    with np.errstate(invalid="ignore", over="ignore"):  # NaN as an integer, overflow in float16: checked below
        values = kept.astype(feature.column.dtype)
    if feature.largest is not None:
        good = (values == kept) & (values >= 0) & (values <= feature.largest)
        allowed = f"an integer from 0 to {feature.largest}"
    elif values.dtype == np.float16:
        good, allowed = np.isfinite(values) | ~np.isfinite(kept), "a number that float16 can hold (up to 65504)"
    else:
        return values
    if not good.all():
        row = int(np.nonzero(~good)[0][0])
        raise RecordError(
            f"record {first + row} (counted from 0): feature '{feature.name}' has the value {kept[~good][0]}, expected "
            f"{allowed}"
        )
    return values
