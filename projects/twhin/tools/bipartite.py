"""Edges between two kinds of numbered entities, with a time chunk each, in CSV, TSV or Parquet files: the layout of the
public graphs TwitterFollowGraph (arXiv 2205.06205) and TwitterFaveGraph (arXiv 2210.16271)."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from common.errors import UserError
from common.reader.files import READ_ERRORS, DataError
from projects.twhin.data.vocabulary import write_vocabulary
from projects.twhin.tools.graph_files import SPLITS, EdgeWriter, vocabulary_path
from projects.twhin.tools.ready_config import Graph, RelationOf
from projects.twhin.tools.text_blocks import Block, line_of, parse, read_blocks

TIME_CHUNK = "time_chunk"
_MAX_INDEX = 2**31 - 1
_ROWS_PER_READ = 2**18


class Layout(NamedTuple):
    """The name of the relation, and of its tables; the entities of table T are in the column T_index."""

    relation: str
    lhs: str
    rhs: str

    @property
    def columns(self) -> tuple[str, str, str]:
        """That are read."""
        return f"{self.lhs}_index", f"{self.rhs}_index", TIME_CHUNK


LAYOUTS = {"follow-graph": Layout("follow", "user", "author"), "fave-graph": Layout("fave", "user", "tweet")}


class _Edges(NamedTuple):
    """Columns [edges], int64, and where a row of them is."""

    columns: tuple[NDArray[np.int64], ...]
    place: Callable[[int], str]


class Chunks(NamedTuple):
    """The first time chunks of the splits after the training data; None: there is no such split."""

    validation_from: int | None
    test_from: int | None

    def split_of(self, time_chunks: NDArray[np.int64]) -> NDArray[np.int64]:
        """[edges]: positions in SPLITS."""
        split = np.zeros(len(time_chunks), np.int64)
        if self.validation_from is not None:
            split[time_chunks >= self.validation_from] = SPLITS.index("validation")
        if self.test_from is not None:
            split[time_chunks >= self.test_from] = SPLITS.index("test")
        return split

    def splits(self) -> list[str]:
        """That there are."""
        given = {"validation": self.validation_from, "test": self.test_from}
        return ["train", *(split for split, chunk in given.items() if chunk is not None)]


class Numbered:
    """Rows for dense indices, in the order of their first appearance. Memory: 4 bytes for each up to the greatest."""

    def __init__(self) -> None:
        self._row_of = np.empty(0, np.int32)
        self._indices: list[NDArray[np.int64]] = []
        self.num_rows = 0

    def __call__(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rows of indices [edges], which are 0 to 2^31 - 1."""
        if len(indices) and (greatest := int(indices.max())) >= len(self._row_of):
            grown = np.full(max(greatest + 1, 2 * len(self._row_of)), -1, np.int32)
            grown[: len(self._row_of)] = self._row_of
            self._row_of = grown
        unknown, first = np.unique(indices[self._row_of[indices] < 0], return_index=True)
        unknown = unknown[np.argsort(first)]
        self._row_of[unknown] = np.arange(self.num_rows, self.num_rows + len(unknown))
        self._indices.append(unknown)
        self.num_rows += len(unknown)
        return self._row_of[indices].astype(np.int64)

    def indices(self) -> NDArray[np.int64]:
        """[rows]: the index of each row."""
        return np.concatenate(self._indices)


def prepare_bipartite(out: Path, paths: Sequence[Path], layout: Layout, chunks: Chunks) -> Graph:
    """Writes edges and vocabularies to the folder `out`.

    Args:
      out: a new folder.
      paths: Parquet files, and text files with a line of column names, plain or compressed.
      layout: what the columns are called.
      chunks: which edges are for validation and test.

    Raises:
      DataError: a file can't be read, lacks a column, or holds a value that is no index.
      UserError: a split has no edge.
    """
    tables = {layout.lhs: Numbered(), layout.rhs: Numbered()}
    first_chunk, last_chunk = _MAX_INDEX, -1
    with contextlib.ExitStack() as opened:
        writers = {split: opened.enter_context(EdgeWriter(out / split)) for split in chunks.splits()}
        for path in paths:
            for edges in _read(path, layout.columns):
                lhs, rhs, time_chunk = edges.columns
                if len(lhs) == 0:
                    continue
                for name, values in zip(layout.columns, edges.columns, strict=True):
                    _check(name, values, edges.place)
                lhs, rhs = tables[layout.lhs](lhs), tables[layout.rhs](rhs)
                split_of = chunks.split_of(time_chunk)
                for split, writer in writers.items():
                    chosen = split_of == SPLITS.index(split)
                    writer.write(lhs[chosen], np.zeros(np.count_nonzero(chosen), np.int64), rhs[chosen])
                first_chunk = min(first_chunk, int(time_chunk.min()))
                last_chunk = max(last_chunk, int(time_chunk.max()))
    if last_chunk < 0:
        raise DataError(f"{paths[0]}: not one edge; give files with rows of {', '.join(layout.columns)}")
    if empty := [split for split, writer in writers.items() if writer.num_edges == 0]:
        raise UserError(
            f"no edge is left for {' and '.join(empty)}: the time chunks are {first_chunk} to {last_chunk}; give other "
            "--validation_from and --test_from"
        )
    for table, numbered in tables.items():
        write_vocabulary(vocabulary_path(out, table), pa.array(numbered.indices()))
    return Graph(
        {table: numbered.num_rows for table, numbered in tables.items()},
        [RelationOf(layout.relation, layout.lhs, layout.rhs)],
        {split: writer.num_edges for split, writer in writers.items()},
    )


def _check(name: str, values: NDArray[np.int64], place: Callable[[int], str]) -> None:
    """Raises DataError where one is negative or too large."""
    good = (values >= 0) & (values <= _MAX_INDEX)
    if not good.all():
        row = int(np.argmin(good))
        raise DataError(
            f"{place(row)}: column '{name}': {values[row]} found, numbers from 0 to {_MAX_INDEX} expected; of others "
            "and of names, make triples"
        )


def _read(path: Path, columns: Sequence[str]) -> Iterator[_Edges]:
    try:
        with path.open("rb") as file:
            is_parquet = file.read(4) == b"PAR1"
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror}") from error
    return _read_parquet(path, columns) if is_parquet else _read_text(path, columns)


def _read_parquet(path: Path, columns: Sequence[str]) -> Iterator[_Edges]:
    try:
        with pq.ParquetFile(path) as file:
            if missing := [name for name in columns if name not in file.schema_arrow.names]:
                raise DataError(_missing(f"{path}", missing[0], file.schema_arrow.names))
            for name in columns:
                if not pa.types.is_integer(kind := file.schema_arrow.field(name).type):
                    raise DataError(f"{path}: column '{name}': {kind} found, integers expected")
            first = 0
            for batch in file.iter_batches(_ROWS_PER_READ, columns=list(columns)):

                def place(row: int, first: int = first) -> str:
                    return f"{path}: row {first + row} (counted from 0)"

                for name in columns:
                    if (values := batch.column(name)).null_count:
                        row = int(np.argmax(values.is_null().to_numpy(zero_copy_only=False)))
                        raise DataError(f"{place(row)}: column '{name}': null found, every row needs a value")
                yield _Edges(tuple(batch.column(name).cast(pa.int64()).to_numpy() for name in columns), place)
                first += batch.num_rows
    except READ_ERRORS as error:
        raise DataError(f"{path}: can't be read: {error}") from error


def _read_text(path: Path, columns: Sequence[str]) -> Iterator[_Edges]:
    types = {name: pa.int64() for name in columns}
    names: list[str] = []
    separator = ","
    for block in read_blocks(path):
        if not names:
            header, _, lines = block.lines.partition(b"\n")
            separator = "\t" if b"\t" in header else ","
            names = [name.strip(' "\r') for name in header.decode("utf-8-sig", "replace").split(separator)]
            if missing := [name for name in columns if names.count(name) != 1]:
                raise DataError(_missing(f"{path}:1", missing[0], names))
            block = Block(2, lines)
        if not block.lines.strip():
            continue
        table = parse(block, path, names, types, separator).combine_chunks()
        values = tuple(table.column(name).to_numpy() for name in columns)
        yield _Edges(values, lambda row, block=block: f"{path}:{line_of(block, row)}")  # type: ignore[misc]


def _missing(place: str, name: str, found: Sequence[str]) -> str:
    return (
        f"{place}: no column '{name}' (or several); its columns: {', '.join(found)[:200]}; rename the one that is meant"
    )
