"""Writes the rows of the splits to Parquet files, and the hashes and the sample that the checks of the table read."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from common.features.hashing import Hashes
from common.reader.parquet_file import create_parquet

SPLITS = ("train", "validation", "test")

PART = "part-00000.parquet"
"""Name of the file of a split."""

HASH = "hash"
"""Column of the file of hashes, int64: the hash of a row."""

SAMPLE_ROWS = 200_000
"""Maximum number of rows of the sample."""

MAX_ROW_GROUP_ROWS = 65_536

_MIN_ROW_GROUP_ROWS = 4_096


@dataclass(frozen=True)
class Split:
    """A split that was written.

    Attributes:
      name: its name, one of SPLITS.
      file: its Parquet file.
      num_rows: number of rows.
      positives: number of rows whose label is 1, by label.
      nulls: number of rows without a value, or with NaN, by column.
    """

    name: str
    file: Path
    num_rows: int
    positives: Mapping[str, int]
    nulls: Mapping[str, int]


class Scratch(NamedTuple):
    """Files that the split writes for the checks of the table."""

    hashes: Path
    """The hash of each written row."""
    sample: Path
    """Rows of the training data at regular distances, at most SAMPLE_ROWS."""


def rows_per_group(num_rows: int) -> int:
    """Return the rows per row group of a table, which the reader shuffles as a whole.

    A small table has enough row groups for every lane; a large one has few enough for a short footer.
    """
    return max(_MIN_ROW_GROUP_ROWS, min(MAX_ROW_GROUP_ROWS, num_rows // 24))


class SplitWriters:
    """Writes the splits, the hashes and the sample."""

    def __init__(
        self,
        out: Path,
        schema: pa.Schema,
        labels: Sequence[str],
        shares: Sequence[float],
        num_rows: int,
        scratch: Scratch,
    ) -> None:
        """Create the files.

        Args:
          out: directory in which the directories of the splits are created.
          schema: names and types of the columns.
          labels: names of the labels, which are among the columns.
          shares: expected shares of the rows.
          num_rows: number of rows of all splits, or more if some are dropped.
          scratch: files to create for the checks.
        """
        self._writers = [
            _SplitWriter(out / name / PART, schema, labels, rows_per_group(int(share * num_rows)))
            for name, share in zip(SPLITS, shares, strict=True)
        ]
        self._hashes = create_parquet(scratch.hashes, pa.schema([(HASH, pa.int64())]), use_dictionary=False)
        self._sample = create_parquet(scratch.sample, schema)
        self._sample_every = max(1, math.ceil(shares[0] * num_rows / SAMPLE_ROWS))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for writer in self._writers:
            writer.close(complete=kind is None)
        self._hashes.close()
        self._sample.close()

    def write(self, rows: pa.RecordBatch, hashes: Hashes, numbers: NDArray[np.int8]) -> None:
        """Append rows.

        Args:
          rows: the rows.
          hashes: hash of each row, uint64 [rows].
          numbers: split of each row, int8 [rows], as its position in SPLITS.
        """
        self._hashes.write_batch(pa.record_batch([pa.array(hashes.view(np.int64))], [HASH]))
        for number, writer in enumerate(self._writers):
            part = rows.filter(pa.array(numbers == number))
            if number == 0 and len(part):
                self._sample.write_batch(
                    part.take(pa.array(np.arange(-writer.num_rows % self._sample_every, len(part), self._sample_every)))
                )
            writer.write(part)

    def splits(self) -> dict[str, Split]:
        """Return what was written, by name. Call it after the `with` block."""
        return {name: writer.split(name) for name, writer in zip(SPLITS, self._writers, strict=True)}


class _SplitWriter:
    """Writes rows to a Parquet file in row groups of a fixed size, however they arrive."""

    def __init__(self, path: Path, schema: pa.Schema, labels: Sequence[str], rows_per_group: int) -> None:
        path.parent.mkdir()
        self.num_rows = 0
        self._path = path
        self._schema = schema
        self._rows_per_group = rows_per_group
        self._positives = dict.fromkeys(labels, 0)
        self._nulls = dict.fromkeys(schema.names, 0)
        self._pending: list[pa.RecordBatch] = []
        self._num_pending = 0
        # pyarrow's statistics ignore NaN, and DuckDB concludes from them that a column has none.
        discrete = _discrete_columns(schema)
        self._writer = create_parquet(
            path, schema, compression="zstd", use_dictionary=discrete, write_statistics=discrete
        )

    def write(self, rows: pa.RecordBatch) -> None:
        for name, column in zip(self._schema.names, rows.columns, strict=True):
            self._nulls[name] += column.null_count
            if pa.types.is_floating(column.type):
                self._nulls[name] += pc.sum(pc.is_nan(column)).as_py() or 0
        for label in self._positives:
            self._positives[label] += pc.sum(rows.column(label)).as_py() or 0
        self._pending.append(rows)
        self._num_pending += len(rows)
        self.num_rows += len(rows)
        if self._num_pending >= self._rows_per_group:
            self._flush(at_least=self._rows_per_group)

    def split(self, name: str) -> Split:
        """Return what was written."""
        return Split(name, self._path, self.num_rows, self._positives, self._nulls)

    def close(self, complete: bool) -> None:
        if complete:
            self._flush(at_least=1)
        self._writer.close()

    def _flush(self, at_least: int) -> None:
        table = pa.Table.from_batches(self._pending, self._schema)
        size = self._rows_per_group
        begin = 0
        while table.num_rows - begin >= at_least:
            # One chunk per column, so that the bytes do not depend on how the rows arrived.
            self._writer.write_table(table.slice(begin, size).combine_chunks(), row_group_size=size)
            begin += size
        rest = table.slice(begin)
        self._pending, self._num_pending = rest.to_batches(), rest.num_rows


def _discrete_columns(schema: pa.Schema) -> list[str]:
    """Return the paths of the columns that are not floating-point numbers, whose values often repeat."""
    names = []
    for field in schema:
        is_list = pa.types.is_nested(field.type)
        if not pa.types.is_floating(field.type.value_type if is_list else field.type):
            names.append(f"{field.name}.list.element" if is_list else field.name)
    return names
