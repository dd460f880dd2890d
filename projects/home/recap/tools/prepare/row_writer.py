"""Writes staged rows: Parquet files of some million rows, with the number of each row."""

from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from common.reader.parquet_file import create_parquet
from projects.home.recap.tools.prepare.columns import ROW

ROWS_PER_FILE = 2**20
_BYTES_PER_FILE = 2**29


class RowWriter:
    """Writes batches of rows to numbered files, in order."""

    def __init__(self, folder: Path, columns: pa.Schema) -> None:
        """Create an empty directory.

        Args:
          folder: directory to create.
          columns: names and types of the columns.
        """
        folder.mkdir(parents=True)
        self.files: list[Path] = []
        self.num_rows = 0
        self._folder = folder
        self._schema = pa.schema([pa.field(ROW, pa.int64(), nullable=False), *columns])
        self._file: pq.ParquetWriter | None = None
        self._rows = self._bytes = 0

    def write(self, columns: list[pa.Array], num_rows: int) -> None:
        """Append rows, given as the columns."""
        if num_rows == 0:
            return
        if self._file is None:
            self.files.append(self._folder / f"part-{len(self.files):05d}.parquet")
            # pyarrow's statistics ignore NaN, and DuckDB concludes from them that a column has none.
            self._file = create_parquet(
                self.files[-1], self._schema, compression="lz4", use_dictionary=False, write_statistics=False
            )
            self._rows = self._bytes = 0
        numbers = pa.array(np.arange(self.num_rows, self.num_rows + num_rows))
        batch = pa.RecordBatch.from_arrays([numbers, *columns], schema=self._schema)
        self._file.write_batch(batch)
        self.num_rows += num_rows
        self._rows += num_rows
        self._bytes += batch.nbytes
        if self._rows >= ROWS_PER_FILE or self._bytes >= _BYTES_PER_FILE:
            self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
