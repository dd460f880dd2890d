"""The files of a prepared graph: train/, validation/, test/ with edges, vocabulary/ with a file per table."""

from pathlib import Path

from common.table_writer import Column

EDGES = [Column("lhs", "int64"), Column("rel", "int64"), Column("rhs", "int64")]
"""Of a table of edges: row of the left entity, id of the relation, row of the right entity."""

# Rows are shuffled within row groups, and lanes read their own: there are to be more than a few.
ROW_GROUP_SIZE = 16_384
ROWS_PER_FILE = 64 * ROW_GROUP_SIZE


def vocabulary_path(folder: Path, table: str) -> Path:
    """Of a table's vocabulary in the folder of a graph."""
    return folder / "vocabulary" / f"{table}.parquet"
