"""Names the files of a prepared graph and writes its edges.

A graph directory has the edges in train/, validation/ and test/, one file per table in vocabulary/, and relations.txt.
"""

import contextlib
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from common.files.table_writer import TableColumn, TableWriter

EDGES = [TableColumn("lhs", "int64"), TableColumn("rel", "int64"), TableColumn("rhs", "int64")]
"""Columns of an edge file: row of the left entity, id of the relation, row of the right entity."""

SPLITS = ("train", "validation", "test")

# Row groups are the unit of shuffling and of dealing rows to lanes, so a file needs many of them.
_ROW_GROUP_SIZE = 16_384
_ROWS_PER_FILE = 64 * _ROW_GROUP_SIZE


def vocabulary_path(folder: Path, table: str) -> Path:
    """Return the path of a table's vocabulary in a graph directory."""
    return folder / "vocabulary" / f"{table}.parquet"


def relation_names_path(folder: Path) -> Path:
    """Return the path of the file with the relation names, one per line in the order of their ids."""
    return folder / "relations.txt"


class EdgeWriter:
    """Writes edges to part-00000.parquet, part-00001.parquet, ... in a directory that it creates.

    Attributes:
      num_edges: number of edges written so far.
    """

    def __init__(self, folder: Path) -> None:
        self.num_edges = 0
        self._folder = folder
        self._part = -1
        self._open = contextlib.ExitStack()
        self._writer: TableWriter | None = None

    def __enter__(self) -> Self:
        self._folder.mkdir()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.__exit__(kind, error, trace)

    def write(self, lhs: NDArray[np.int64], rel: NDArray[np.int64], rhs: NDArray[np.int64]) -> None:
        """Append edges. All three arrays have the shape [edges]."""
        for start in range(0, len(lhs), _ROWS_PER_FILE):
            edges: dict[str, NDArray[Any]] = {"lhs": lhs, "rel": rel, "rhs": rhs}
            self._append({name: values[start : start + _ROWS_PER_FILE] for name, values in edges.items()})
        self.num_edges += len(lhs)

    def _append(self, edges: dict[str, NDArray[Any]]) -> None:
        if self._writer is None or self._writer.num_rows >= _ROWS_PER_FILE:
            self._open.close()
            self._part += 1
            path = self._folder / f"part-{self._part:05d}.parquet"
            self._writer = self._open.enter_context(TableWriter(path, EDGES, _ROW_GROUP_SIZE))
        self._writer.write(edges)
