"""Reads queries by name, from the command line or from files, and finds their relations and entities.

A query is an edge without its head (left entity) or its tail (right entity).
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from common.errors import UserError
from common.reader.files import READ_ERRORS, DataError, matching_files
from common.reader.parquet_file import is_parquet, open_parquet
from projects.twhin.data.relations import Side
from projects.twhin.data.similar_names import similar_names
from projects.twhin.predict.saved_model import SavedRun
from projects.twhin.tools.text_blocks import Block, line_number, parse, read_blocks

_COLUMNS = ("head", "relation", "tail")
_TEXT_TYPES = dict.fromkeys(_COLUMNS, pa.string())

_TO_FIND = "?"
"""Stands for the entity to find in text files."""


@dataclass(frozen=True)
class Queries:
    """Queries in the order in which they were given.

    Attributes:
      finds_tail: True to find tails, False to find heads: [queries].
      relations: ids of the relations: [queries], int64.
      entities: rows of the given entities in their tables: [queries], int64.
    """

    finds_tail: NDArray[np.bool_]
    relations: NDArray[np.int64]
    entities: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.relations)

    def __getitem__(self, chosen: slice) -> "Queries":
        return Queries(self.finds_tail[chosen], self.relations[chosen], self.entities[chosen])

    def positions(self, side: Side) -> NDArray[np.int64]:
        """Return the positions of the queries that find entities on a side."""
        return np.flatnonzero(self.finds_tail == (side == "rhs"))


class NamedQueries(NamedTuple):
    """Queries by name.

    Attributes:
      names: names of head, relation and tail, [queries] each. One of head and tail is null.
      place: returns what a message says about the place of a query.
    """

    names: Mapping[str, pa.Array]
    place: Callable[[int], str]


def queries_of_options(run: SavedRun, heads: Sequence[str], relations: Sequence[str], tails: Sequence[str]) -> Queries:
    """Return a query for the tails of each head and each relation, and for the heads of each relation and each tail.

    Raises:
      UserError: a name is unknown.
    """
    rows: list[tuple[str | None, str, str | None]] = []
    rows += [(head, relation, None) for head in heads for relation in relations]
    rows += [(None, relation, tail) for relation in relations for tail in tails]
    options = [
        f"--head {head} --relation {relation}" if tail is None else f"--relation {relation} --tail {tail}"
        for head, relation, tail in rows
    ]
    names = {
        name: pa.array(column, pa.large_string())
        for name, column in zip(_COLUMNS, zip(*rows, strict=True), strict=True)
    }
    return _find(run, NamedQueries(names, options.__getitem__))


def queries_of_files(run: SavedRun, patterns: Sequence[str]) -> Queries:
    """Return the queries in files, in their order.

    Args:
      run: the model.
      patterns: glob patterns, files, or directories of *.parquet files. A file is Parquet, with the columns head,
        relation and tail, or text, with lines of head, relation and tail, separated by tabs. The entity to find is
        null in Parquet, and ? in text.

    Raises:
      DataError: a file cannot be read, or has a row that is not a query.
      UserError: a name is unknown, or there are no queries.
    """
    found = []
    for pattern in patterns:
        for path in matching_files(pattern).paths:
            found += [_find(run, block) for block in (_parquet if is_parquet(path) else _text)(path)]
    if not sum(map(len, found)):
        raise UserError(f"--queries {' '.join(patterns)}: no queries found")
    return Queries(
        np.concatenate([each.finds_tail for each in found]),
        np.concatenate([each.relations for each in found]),
        np.concatenate([each.entities for each in found]),
    )


def _text(path: Path) -> Iterator[NamedQueries]:
    for block in read_blocks(path):
        table = parse(block, path, list(_COLUMNS), _TEXT_TYPES, "\t").combine_chunks()
        if table.num_rows:
            names = {name: pc.ascii_trim(table.column(name).chunk(0), " ") for name in _COLUMNS}
            for name in ("head", "tail"):
                names[name] = pc.if_else(pc.equal(names[name], _TO_FIND), pa.scalar(None, pa.string()), names[name])
            yield NamedQueries(names, functools.partial(_line, path, block))


def _line(path: Path, block: Block, row: int) -> str:
    return f"{path}:{line_number(block, row)}"


def _parquet(path: Path) -> Iterator[NamedQueries]:
    try:
        with open_parquet(path) as file:
            found = file.schema_arrow.names
            present = [name for name in _COLUMNS if name in found]
            if "relation" not in present or len(present) == 1:
                raise DataError(
                    f"{path}: found the columns {', '.join(found) or 'none'}, expected relation with head (to find "
                    "tails), with tail (to find heads), or with both, of which one is null in each row"
                )
            first_row = 0
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, columns=present, use_threads=False)
                missing = pa.nulls(table.num_rows, pa.large_string())
                names = {name: _names(path, name, table[name]) if name in present else missing for name in _COLUMNS}
                yield NamedQueries(names, functools.partial(_row, path, first_row))
                first_row += table.num_rows
    except READ_ERRORS as error:
        raise DataError(f"{path}: cannot read this file: {error}") from error


def _row(path: Path, first_row: int, row: int) -> str:
    return f"{path}: row {first_row + row} (counted from 0)"


def _names(path: Path, name: str, column: pa.ChunkedArray) -> pa.Array:
    """Return a column of names as an array of strings or integers. Categories become strings."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if pa.types.is_null(kind):
        kind = pa.large_string()
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_integer(kind)):
        raise DataError(f"{path}: column '{name}': found {column.type}, expected strings or integers")
    return column.cast(kind).combine_chunks()


def _find(run: SavedRun, named: NamedQueries) -> Queries:
    """Find the relations and the entities of queries. Raises UserError if a name is unknown."""
    heads, relation_names, tails = (named.names[name] for name in _COLUMNS)
    has_head, has_tail = (each.is_valid().to_numpy(zero_copy_only=False) for each in (heads, tails))
    if (invalid := has_head == has_tail).any():
        row = int(np.argmax(invalid))
        problem = "both head and tail are given" if has_head[row] else "neither head nor tail is given"
        raise UserError(
            f"{named.place(row)}: {problem}. The entity to find must be missing: null in Parquet files, {_TO_FIND} in "
            "text files"
        )
    known = pa.array(run.relations.names, pa.large_string())
    relations = pc.fill_null(pc.index_in(relation_names.cast(known.type), known), -1).to_numpy().astype(np.int64)
    if (unknown := relations < 0).any():
        row = int(np.argmax(unknown))
        name = relation_names[row].as_py()
        if name is None:
            raise UserError(f"{named.place(row)}: the relation is missing")
        raise UserError(
            f"{named.place(row)}: {name} is not among the {len(known):,} relations of the model. "
            f"{similar_names('relations', known, str(name))}"
        )
    entities = np.empty(len(relations), np.int64)
    sides: tuple[tuple[Side, pa.Array, NDArray[np.bool_]], ...] = (
        ("lhs", heads, has_head),
        ("rhs", tails, has_tail),
    )
    for side, names, is_given in sides:
        entities[is_given] = run.names.find(side, relations[is_given], names.filter(pa.array(is_given)))
    if (unknown := entities < 0).any():
        row = int(np.argmax(unknown))
        side, names, _ = sides[0] if has_head[row] else sides[1]
        problem = run.names.describe_unknown(side, int(relations[row]), str(names[row].as_py()))
        more = f" {unknown.sum() - 1:,} more queries have unknown entities." if unknown.sum() > 1 else ""
        raise UserError(f"{named.place(row)}: {problem}.{more}")
    return Queries(has_head, relations, entities)
