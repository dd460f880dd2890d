"""Reads a small table through ingestion, for tests of its parts."""

import hashlib
import shutil
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from projects.home.recap.tools.prepare.columns import ROW, Ingested, IngestedColumn, IngestOptions
from projects.home.recap.tools.prepare.database import open_database
from projects.home.recap.tools.prepare.ingest import ingest
from projects.home.recap.tools.prepare.input_files import find_files


class Table(NamedTuple):
    """An ingested table and its staged rows."""

    ingested: Ingested
    rows: pa.Table
    digests: list[str]
    """Digests of the staged files."""

    def column(self, name: str) -> IngestedColumn:
        """Return what is known of a column."""
        (column,) = (column for column in self.ingested.columns if column.name == name)
        return column

    def values(self, name: str) -> list[Any]:
        """Return the staged values of a column."""
        values: list[Any] = self.rows.column(self.column(name).staged).to_pylist()
        return values

    def kinds(self) -> dict[str, str]:
        """Return the kinds by name."""
        return {column.name: column.kind for column in self.ingested.columns}


def ingested(*inputs: Path, threads: int = 2, **options: Any) -> Table:
    """Return the table in files. `options` are those of IngestOptions."""
    staging = Path(tempfile.mkdtemp())
    try:
        with open_database(staging / "duckdb", threads=threads) as connection:
            result = ingest(connection, find_files(inputs), staging, IngestOptions(**options))
        rows = pa.concat_tables([pq.read_table(file) for file in result.files])
        assert rows.column(ROW).to_pylist() == list(range(result.num_rows))
        return Table(result, rows, [hashlib.sha256(file.read_bytes()).hexdigest() for file in result.files])
    finally:
        shutil.rmtree(staging)


def ingested_text(folder: Path, text: str | bytes, **options: Any) -> Table:
    """Return the table in a CSV file with this content. `options` are those of IngestOptions."""
    file = folder / "table.csv"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return ingested(file, **options)


def ingested_column(folder: Path, values: list[str], **options: Any) -> Table:
    """Return a table of CSV with the column x, whose fields are written as given, and a column y of letters."""
    return ingested_text(folder, "x;y\n" + "".join(f"{value};a\n" for value in values), delimiter=";", **options)
