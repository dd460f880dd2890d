"""GroupEncoder: which values are equal groups, and what it refuses."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash

from common.features.group_encoder import GROUPS, NO_GROUP, GroupEncoder
from common.reader.files import DataError, Files
from common.reader.parquet import ParquetTable

LONG = "a name of more than thirty-two bytes, with ümlauts"


def groups(tmp_path: Path, column: pa.Array | pa.ChunkedArray, name: str = "user_id") -> list[int]:
    """Write a column, and return the groups that a table reads from all its row groups."""
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({name: column}), path, row_group_size=3)
    table = ParquetTable(Files((path,), "rows"), {}, encoder=GroupEncoder("user_id", "metrics.group_by"))
    found = [table.decode(group)[GROUPS] for group in range(len(table.rows_per_group))]
    assert {part.dtype for part in found} == {np.dtype(np.int64)}
    numbers: list[int] = np.concatenate(found).tolist()
    return numbers


def expected(values: list[Any]) -> list[int]:
    """Return the hashes of strings and integers, from the C library."""
    hashes = []
    for value in values:
        data = value.encode() if isinstance(value, str) else struct.pack("<q", value or 0)
        unsigned = xxhash.xxh64_intdigest(data, 42)
        hashes.append(NO_GROUP if value is None else unsigned - 2**64 * (unsigned >= 2**63))
    return hashes


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())], ids=str
)
def test_strings_are_hashed_and_null_is_no_group(tmp_path: Path, kind: pa.DataType) -> None:
    values = ["ann", None, "", LONG, "ann", None, "null", "bob"]
    assert groups(tmp_path, pa.array(values, pa.string()).cast(kind)) == expected(values)


@pytest.mark.parametrize("kind", [pa.int64(), pa.int16(), pa.float64()], ids=str)
def test_integers_are_hashed_whatever_their_type(tmp_path: Path, kind: pa.DataType) -> None:
    values = [7, None, 0, -1, 7, 30000]
    column = pa.array(values, pa.int64()).cast(kind)
    assert groups(tmp_path, column) == groups(tmp_path, column.dictionary_encode()) == expected(values)


def test_nan_is_no_group_and_booleans_are_integers(tmp_path: Path) -> None:
    assert groups(tmp_path, pa.array([1.0, float("nan")], pa.float32())) == expected([1, None])
    assert groups(tmp_path, pa.array([True, None, False])) == expected([1, None, 0])


def test_large_integers_are_not_rounded(tmp_path: Path) -> None:
    values = [2**53, 2**53 + 1, 2**63 - 1]
    assert groups(tmp_path, pa.array(values, pa.uint64())) == expected(values)
    assert groups(tmp_path, pa.array([-(2**63)], pa.int64())) == expected([-(2**63)])


@pytest.mark.parametrize("kind", [pa.null(), pa.string(), pa.int64()], ids=str)
def test_a_column_of_nulls_has_no_groups(tmp_path: Path, kind: pa.DataType) -> None:
    assert groups(tmp_path, pa.array([None] * 4, kind)) == [NO_GROUP] * 4


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array([["a"], ["b"]]), r"column 'user_id': found list<.*metrics\.group_by needs a column of strings"),
        (pa.array([0, 1], pa.timestamp("ms")), r"column 'user_id': found timestamp\[ms\]"),
        (pa.array([1.0, 1.5]), r"row group 0: column 'user_id': .*1\.5.*metrics\.group_by needs whole numbers"),
        (pa.array([2**63], pa.uint64()), r"row group 0: column 'user_id': .*9223372036854775808.* whole numbers"),
    ],
)
def test_other_values_are_refused(tmp_path: Path, column: pa.Array, message: str) -> None:
    with pytest.raises(DataError, match=rf"^{tmp_path}/rows\.parquet: {message}"):
        groups(tmp_path, column)


def test_a_missing_column_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no column 'user_id', .*metrics\.group_by names it; columns found: users"):
        groups(tmp_path, pa.array(["a"]), name="users")
