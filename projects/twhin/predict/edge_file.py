"""Writes edges with additional columns to a Parquet file."""

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from common.reader.parquet_file import create_parquet
from projects.twhin.predict.saved_model import SavedRun

_ROWS_PER_GROUP = 65_536


class EdgeFile:
    """Writes the columns head, relation and tail (names), lhs, rel and rhs (row, id, row), and additional ones.

    Because of lhs, rel and rhs, the file is one of edges. The name of a row beyond the vocabulary is null.

    Attributes:
      num_rows: number of rows written so far.
    """

    def __init__(self, path: Path, run: SavedRun, additional: Sequence[pa.Field]) -> None:
        """Create the file.

        Args:
          path: file to create.
          run: model of the edges.
          additional: additional columns.
        """
        self.num_rows = 0
        self._run = run
        self._relation_names = pa.array(run.relations.names, pa.string())
        self._schema = pa.schema(
            [
                pa.field("head", run.names.kind),
                pa.field("relation", pa.string(), nullable=False),
                pa.field("tail", run.names.kind),
                *(pa.field(name, pa.int64(), nullable=False) for name in ("lhs", "rel", "rhs")),
                *additional,
            ]
        )
        self._pending: list[pa.Table] = []
        self._num_pending = 0
        self._writer = create_parquet(path, self._schema, compression="zstd")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._flush()
        self._writer.close()

    def write(
        self, lhs: NDArray[np.int64], rel: NDArray[np.int64], rhs: NDArray[np.int64], additional: Sequence[pa.Array]
    ) -> None:
        """Append edges. All arrays are [edges]."""
        names = self._run.names
        columns = [
            names.take("lhs", rel, lhs),
            self._relation_names.take(pa.array(rel)),
            names.take("rhs", rel, rhs),
            *(pa.array(each) for each in (lhs, rel, rhs)),
            *additional,
        ]
        self._pending.append(pa.Table.from_arrays(columns, schema=self._schema))
        self._num_pending += len(rel)
        self.num_rows += len(rel)
        if self._num_pending >= _ROWS_PER_GROUP:
            self._flush()

    def _flush(self) -> None:
        if self._pending:
            self._writer.write_table(pa.concat_tables(self._pending), row_group_size=_ROWS_PER_GROUP)
        self._pending, self._num_pending = [], 0
