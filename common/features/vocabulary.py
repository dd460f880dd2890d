"""Reads and writes vocabularies: Parquet files with the columns value, index and, optionally, count.

A vocabulary assigns a row of an embedding table to each value that it contains.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from common.features.config import FIRST_VALUE_ROW, MAX_VALUES, UNKNOWN_ROW, Feature, too_many_values
from common.features.hashing import Hashes, hash_integers, hash_strings
from common.process.paths import user_path
from common.reader.files import READ_ERRORS, DataError
from common.reader.parquet_file import check_columns_fit, create_parquet, no_column, open_parquet

_INT64_MAX = np.iinfo(np.int64).max


class Vocabulary:
    """The values of a vocabulary, which are looked up by their hashes."""

    def __init__(self, path: Path, values: pa.Array, counts: NDArray[np.int64] | None) -> None:
        """Sort the hashes of the values.

        Args:
          path: file of the vocabulary, for messages.
          values: value of each index: [values], large strings or int64, distinct and not null.
          counts: number of occurrences of each value in the training data, >= 0: [values]; None if unknown.

        Raises:
          DataError: two values have the same hash.
        """
        self.path = path
        self.values = values
        self.counts = counts
        self.has_strings = bool(pa.types.is_large_string(values.type))
        hashes = hash_strings(values) if self.has_strings else hash_integers(values.to_numpy())
        digest = hashlib.blake2b(b"strings" if self.has_strings else b"integers", digest_size=16)
        digest.update(hashes.astype("<u8").tobytes())
        if counts is not None:
            digest.update(counts.astype("<i8").tobytes())
        self.digest = digest.hexdigest()
        """Digest of the values, in order, and of their counts. It doesn't depend on how the file stores them."""
        order = np.argsort(hashes)
        # One more hash, which is larger than or equal to all others, ends every search.
        self._hashes: Hashes = np.append(hashes[order], np.uint64(2**64 - 1))
        self._rows = np.append(order + FIRST_VALUE_ROW, UNKNOWN_ROW).astype(np.int32)
        equal = np.flatnonzero(self._hashes[1:-1] == self._hashes[:-2])
        if equal.size:
            first, second = (values[int(order[equal[0] + offset])].as_py() for offset in (0, 1))
            raise DataError(f"{path}: the values {first!r} and {second!r} have the same XXH64. Remove one of them")
        # Hashes are uniform: their first bits tell where to start, at most some places before the right one.
        bits = max(1, (2 * len(order)).bit_length())
        self._shift = np.uint64(64 - bits)
        starts = np.arange(2**bits, dtype=np.uint64) << self._shift
        self._starts = np.searchsorted(self._hashes, starts).astype(np.int32)

    @property
    def description(self) -> str:
        """Number of values and digest, which a run compares with those of a resume and of its other ranks."""
        return f"{len(self):,} values, digest {self.digest}"

    def __len__(self) -> int:
        return len(self.values)

    def rows(self, hashes: Hashes) -> NDArray[np.int32]:
        """Return the row of each value, given by its hash; UNKNOWN_ROW for a value that is not in the vocabulary."""
        # take() needs half the time of an index in brackets.
        places = self._starts.take((hashes >> self._shift).view(np.int64))
        found = self._hashes.take(places)
        later = np.flatnonzero(found < hashes)
        while later.size:
            next_places = places[later] + 1
            places[later] = next_places
            next_found = self._hashes.take(next_places)
            found[later] = next_found
            later = later[next_found < hashes[later]]
        rows: NDArray[np.int32] = self._rows.take(places)
        rows[found != hashes] = UNKNOWN_ROW
        return rows


def write_vocabulary(path: Path, values: pa.Array, counts: NDArray[np.int64] | None = None) -> None:
    """Write a vocabulary.

    Args:
      path: file to write.
      values: value of each index: [values], distinct strings or integers, without nulls.
      counts: number of occurrences of each value in the training data: [values]; None if unknown.
    """
    columns: dict[str, Any] = {"value": values, "index": np.arange(len(values))}
    table = pa.table(columns if counts is None else {**columns, "count": counts})
    with create_parquet(path, table.schema, compression="zstd") as writer:
        writer.write_table(table)


def read_vocabularies(features: Mapping[str, Feature]) -> dict[str, Vocabulary]:
    """Read the vocabularies of all features, each once, by their paths in the configuration.

    Raises:
      DataError: see read_vocabulary; the message begins with the path.
    """
    paths = dict.fromkeys(path for feature in features.values() if (path := getattr(feature, "vocabulary", None)))
    return {path: read_vocabulary(user_path(path)) for path in paths}


def read_vocabulary(path: Path) -> Vocabulary:
    """Read a vocabulary.

    Raises:
      DataError: the file cannot be read or has too many values; a column is missing or has the wrong type; a value is
        null or a duplicate; the indices are not 0 to rows - 1, each once; or a count is null or negative.
    """
    try:
        with open_parquet(path) as file:
            found = file.schema_arrow.names
            for name in ("value", "index"):
                if found.count(name) != 1:
                    raise DataError(
                        f"{path}: {no_column(name, found)}. A vocabulary has the columns value, index and, optionally, "
                        "count"
                    )
            if file.metadata.num_rows > MAX_VALUES:
                raise DataError(f"{path}: {too_many_values(file.metadata.num_rows)}")
            names = ["value", "index", *(["count"] if "count" in found else [])]
            check_columns_fit(path, file, names)
            table = file.read(columns=names)
    except READ_ERRORS as error:
        raise DataError(f"{path}: cannot read this file as a vocabulary: {error}") from error
    columns = {name: _plain(table.column(name)) for name in names}
    for name, values in columns.items():
        if values.null_count:
            raise DataError(f"{path}: row {pc.index(values.is_null(), True).as_py()}: column '{name}': found null")
    values = _values(path, columns["value"])
    order = _order(path, _integers(path, columns["index"], "index"))
    counts = None
    if "count" in columns:
        counts = _integers(path, columns["count"], "count")
        if counts.size and counts.min() < 0:
            row = int(np.argmax(counts < 0))
            raise DataError(f"{path}: row {row}: column 'count': found {counts[row]}, but counts must be at least 0")
        counts = counts[order]
    return Vocabulary(path, values.take(pa.array(order)), counts)


def _plain(column: pa.ChunkedArray) -> pa.Array:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)


def _values(path: Path, values: pa.Array) -> pa.Array:
    """Return the values as large strings or int64."""
    kind = values.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        values = values.cast(pa.large_string())
    else:
        values = pa.array(_integers(path, values, "value", "strings or integers"))
    ordered = values.take(pc.array_sort_indices(values))
    duplicate = pc.index(pc.equal(ordered[1:], ordered[:-1]), True).as_py()
    if duplicate >= 0:
        raise DataError(f"{path}: column 'value': {ordered[duplicate].as_py()!r} occurs more than once")
    return values


def _integers(path: Path, values: pa.Array, name: str, expected: str = "integers") -> NDArray[np.int64]:
    if not pa.types.is_integer(values.type):
        raise DataError(f"{path}: column '{name}': found {values.type}, expected {expected}")
    numbers = values.to_numpy()
    if (large := numbers > _INT64_MAX).any():
        row = int(np.argmax(large))
        raise DataError(f"{path}: row {row}: column '{name}': found {numbers[row]}, but integers must be below 2^63")
    integers: NDArray[np.int64] = numbers.astype(np.int64)
    return integers


def _order(path: Path, index: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the place of each index in the file."""
    order = np.argsort(index, kind="stable")
    if (wrong := index[order] != np.arange(len(index))).any():
        position = int(np.argmax(wrong))
        raise DataError(
            f"{path}: column 'index': found {index[order[position]]}, but {position} is the next index. The "
            f"{len(index)} rows of this vocabulary need the indices from 0 to {len(index) - 1}, each once"
        )
    return order
