"""Turns bipartite graphs with time chunks into edges.

Reads the format of the public graphs TwitterFollowGraph (arXiv 2205.06205) and TwitterFaveGraph (arXiv 2210.16271):
CSV, TSV or Parquet files with an index for each of two kinds of entities, and a time chunk per edge.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from common.errors import UserError
from common.process.memory import memory_shortage
from common.reader.files import READ_ERRORS, DataError
from common.reader.parquet_file import is_parquet, open_parquet
from projects.twhin.data.vocabulary import write_vocabulary
from projects.twhin.tools.config_writer import PreparedGraph, PreparedRelation
from projects.twhin.tools.graph_files import SPLITS, EdgeWriter, vocabulary_path
from projects.twhin.tools.text_blocks import Block, line_number, parse, read_blocks

TIME_CHUNK = "time_chunk"
_MAX_INDEX = 2**31 - 1
_ROWS_PER_READ = 2**18


class BipartiteFormat(NamedTuple):
    """Names of the relation and of its two tables. The column T_index holds the entities of table T."""

    relation: str
    lhs: str
    rhs: str

    @property
    def columns(self) -> tuple[str, str, str]:
        """Names of the columns to read."""
        return f"{self.lhs}_index", f"{self.rhs}_index", TIME_CHUNK


FORMATS = {
    "follow-graph": BipartiteFormat("follow", "user", "author"),
    "fave-graph": BipartiteFormat("fave", "user", "tweet"),
}


class SplitChunks(NamedTuple):
    """First time chunk of the validation edges and of the test edges. None if there is no such split."""

    validation_from: int | None
    test_from: int | None

    def split_of(self, time_chunks: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the split of each edge as a position in SPLITS, [edges] int64."""
        split = np.zeros(len(time_chunks), np.int64)
        if self.validation_from is not None:
            split[time_chunks >= self.validation_from] = SPLITS.index("validation")
        if self.test_from is not None:
            split[time_chunks >= self.test_from] = SPLITS.index("test")
        return split

    def splits(self) -> list[str]:
        """Return the names of the splits to write."""
        first_chunks = {"validation": self.validation_from, "test": self.test_from}
        return ["train", *(split for split, chunk in first_chunks.items() if chunk is not None)]


class RowAssigner:
    """Assigns table rows to indices in the order of their first appearance.

    Takes 4 bytes of memory for each index up to the largest, and 8 bytes per row.

    Attributes:
      num_rows: number of rows assigned so far.
    """

    def __init__(self) -> None:
        self._row_of = np.empty(0, np.int32)
        self._indices: list[NDArray[np.int64]] = []
        self.num_rows = 0

    def assign(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the rows of indices [edges], which must be 0 to 2^31 - 1. New indices get the next rows.

        Raises:
          DataError: there is too little memory for a table of all indices.
        """
        if len(indices) and (largest := int(indices.max())) >= len(self._row_of):
            num_indices = max(largest + 1, 2 * len(self._row_of))
            if shortage := memory_shortage(4 * num_indices):
                raise DataError(
                    f"found the index {largest}: a table of all indices up to it {shortage}. Number the entities "
                    "without gaps, or write triples and use `prepare triples`"
                )
            grown = np.full(num_indices, -1, np.int32)
            grown[: len(self._row_of)] = self._row_of
            self._row_of = grown
        new, first = np.unique(indices[self._row_of[indices] < 0], return_index=True)
        new = new[np.argsort(first)]
        self._row_of[new] = np.arange(self.num_rows, self.num_rows + len(new))
        self._indices.append(new)
        self.num_rows += len(new)
        return self._row_of[indices].astype(np.int64)

    def indices(self) -> NDArray[np.int64]:
        """Return the index of each row, [rows] int64."""
        return np.concatenate(self._indices)


class _Edges(NamedTuple):
    """A block of edges of a file.

    Attributes:
      columns: left indices, right indices and time chunks, [edges] int64 each.
      location: returns the file and line (Parquet: row) of an edge, for messages.
    """

    columns: tuple[NDArray[np.int64], ...]
    location: Callable[[int], str]


def prepare_bipartite(
    out: Path, paths: Sequence[Path], file_format: BipartiteFormat, chunks: SplitChunks
) -> PreparedGraph:
    """Write edges and vocabularies to the directory `out`.

    Args:
      out: an existing, empty directory.
      paths: Parquet files, and text files (plain or compressed) whose first line has the column names.
      file_format: names of the columns.
      chunks: time chunks of validation and test edges.

    Raises:
      DataError: a file cannot be read, lacks a column, or has a value that is not an index.
      UserError: a split has no edges.
    """
    rows = {file_format.lhs: RowAssigner(), file_format.rhs: RowAssigner()}
    first_chunk, last_chunk = _MAX_INDEX, -1
    with contextlib.ExitStack() as opened:
        writers = {split: opened.enter_context(EdgeWriter(out / split)) for split in chunks.splits()}
        for path in paths:
            for edges in _read(path, file_format.columns):
                lhs, rhs, time_chunk = edges.columns
                if len(lhs) == 0:
                    continue
                for name, values in zip(file_format.columns, edges.columns, strict=True):
                    _check_range(name, values, edges.location)
                lhs, rhs = rows[file_format.lhs].assign(lhs), rows[file_format.rhs].assign(rhs)
                split_of = chunks.split_of(time_chunk)
                for split, writer in writers.items():
                    chosen = split_of == SPLITS.index(split)
                    writer.write(lhs[chosen], np.zeros(np.count_nonzero(chosen), np.int64), rhs[chosen])
                first_chunk = min(first_chunk, int(time_chunk.min()))
                last_chunk = max(last_chunk, int(time_chunk.max()))
    if last_chunk < 0:
        raise DataError(f"{paths[0]}: no edges found. Give files with rows of {', '.join(file_format.columns)}")
    if empty := [split for split, writer in writers.items() if writer.num_edges == 0]:
        raise UserError(
            f"no edges left for {' and '.join(empty)}: the time chunks are {first_chunk} to {last_chunk}. Change "
            "--validation_from and --test_from"
        )
    for table, assigner in rows.items():
        write_vocabulary(vocabulary_path(out, table), pa.array(assigner.indices()))
    return PreparedGraph(
        {table: assigner.num_rows for table, assigner in rows.items()},
        [PreparedRelation(file_format.relation, file_format.lhs, file_format.rhs)],
        {split: writer.num_edges for split, writer in writers.items()},
    )


def _check_range(name: str, values: NDArray[np.int64], location: Callable[[int], str]) -> None:
    """Raise DataError if a value is negative or too large."""
    valid = (values >= 0) & (values <= _MAX_INDEX)
    if not valid.all():
        row = int(np.argmin(valid))
        raise DataError(
            f"{location(row)}: column '{name}': found {values[row]}, expected a number from 0 to {_MAX_INDEX}. "
            "If the graph has other numbers or names, write triples and use `prepare triples`"
        )


def _read(path: Path, columns: Sequence[str]) -> Iterator[_Edges]:
    return _read_parquet(path, columns) if is_parquet(path) else _read_text(path, columns)


def _read_parquet(path: Path, columns: Sequence[str]) -> Iterator[_Edges]:
    try:
        with open_parquet(path) as file:
            if missing := [name for name in columns if name not in file.schema_arrow.names]:
                raise DataError(_column_error(f"{path}", missing[0], file.schema_arrow.names))
            for name in columns:
                if not pa.types.is_integer(kind := file.schema_arrow.field(name).type):
                    raise DataError(f"{path}: column '{name}': found {kind}, expected integers")
            first = 0
            for batch in file.iter_batches(_ROWS_PER_READ, columns=list(columns)):

                def location(row: int, first: int = first) -> str:
                    return f"{path}: row {first + row} (counted from 0)"

                for name in columns:
                    if (values := batch.column(name)).null_count:
                        row = int(np.argmax(values.is_null().to_numpy(zero_copy_only=False)))
                        raise DataError(f"{location(row)}: column '{name}': found null, but every row needs a value")
                yield _Edges(tuple(batch.column(name).cast(pa.int64()).to_numpy() for name in columns), location)
                first += batch.num_rows
    except READ_ERRORS as error:
        raise DataError(f"{path}: cannot read this file: {error}") from error


def _read_text(path: Path, columns: Sequence[str]) -> Iterator[_Edges]:
    types = {name: pa.int64() for name in columns}
    names: list[str] = []
    separator = ","
    for block in read_blocks(path):
        if not names:
            content = block.lines.lstrip(b"\r\n")
            if not content:
                continue
            line = block.first_line + block.lines.count(b"\n", 0, len(block.lines) - len(content))
            header, _, lines = content.partition(b"\n")
            separator = "\t" if b"\t" in header else ","
            names = [name.strip(' "\r') for name in header.decode(errors="replace").split(separator)]
            if missing := [name for name in columns if names.count(name) != 1]:
                raise DataError(_column_error(f"{path}:{line}", missing[0], names))
            block = Block(line + 1, lines)
        if not block.lines.strip():
            continue
        table = parse(block, path, names, types, separator).combine_chunks()
        values = tuple(table.column(name).to_numpy() for name in columns)
        yield _Edges(values, lambda row, block=block: f"{path}:{line_number(block, row)}")  # type: ignore[misc]


def _column_error(location: str, name: str, found: Sequence[str]) -> str:
    problem = f"several columns '{name}'" if name in found else f"no column '{name}'"
    return f"{location}: {problem}. The columns are: {', '.join(found)[:200]}. Rename them so that one is '{name}'"
