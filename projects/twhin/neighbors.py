"""The nearest neighbours of entities: `python -m projects.twhin.neighbors --embeddings FILE --entity NAME`.

Exact: all embeddings are compared, in float64. Memory: the entities, one row group of embeddings and k rows.
"""

import argparse
import difflib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from tabulate import tabulate

from common.errors import UserError
from common.files.embedding_files import EmbeddingFile, embedding_tables
from common.process.arguments import at_least_1
from common.process.paths import user_path
from common.process.program import ArgumentParser, run

Comparator = Literal["cos", "dot", "l2"]

# Of similar names, among so many: comparing strings takes time.
_COMPARED_NAMES = 20_000


class Neighbors(NamedTuple):
    """Of one entity, best first, [at most k] each.

    Attributes:
      positions: int64, in the file that was searched.
      scores: float64.
    """

    positions: NDArray[np.int64]
    scores: NDArray[np.float64]


def nearest(
    file: EmbeddingFile, queries: NDArray[np.float32], own: NDArray[np.int64] | None, k: int, comparator: Comparator
) -> list[Neighbors]:
    """Compares embeddings with all of a file; equal scores by lower index.

    Args:
      file: to search in.
      queries: [n, file.dim].
      own: [n], positions in the file of the queries themselves, which are left out; None: they are not of the file.
      k: neighbours of each.
      comparator: cos: cosine (norms count as at least 1e-12), dot: dot product, l2: negative Euclidean distance.

    Returns:
      of each query.

    Raises:
      DataError: the file can't be read.
    """
    best = [_Best(k) for _ in queries]
    for block in file.blocks():
        values = block.values.astype(np.float64)
        for number, query in enumerate(queries.astype(np.float64)):
            scores = _scores(values, query, comparator)
            positions = np.arange(block.start, block.start + len(scores))
            others = np.isfinite(scores) if own is None else np.isfinite(scores) & (positions != own[number])
            best[number].add(positions[others], block.indices[others], scores[others])
    return [Neighbors(each.positions, each.scores) for each in best]


def _scores(values: NDArray[np.float64], query: NDArray[np.float64], comparator: Comparator) -> NDArray[np.float64]:
    """[rows]. Equal rows score equally, wherever they stand: what a BLAS makes of them may differ in the last bit."""
    if comparator == "l2":
        difference = values - query
        return np.asarray(-np.sqrt(np.einsum("nd,nd->n", difference, difference)))
    product = np.einsum("nd,d->n", values, query)
    if comparator == "dot":
        return np.asarray(product)
    norms = np.sqrt(np.einsum("nd,nd->n", values, values))
    with np.errstate(invalid="ignore"):  # of embeddings that are infinite
        return np.asarray(product / np.maximum(norms, 1e-12) / max(float(np.sqrt(query @ query)), 1e-12))


class _Best:
    """The k best so far."""

    def __init__(self, k: int) -> None:
        self._k = k
        self.positions = np.empty(0, np.int64)
        self.scores = np.empty(0, np.float64)
        self._index = np.empty(0, np.int64)

    def add(self, positions: NDArray[np.int64], index: NDArray[np.int64], scores: NDArray[np.float64]) -> None:
        if len(self.scores) == self._k:
            good = scores >= self.scores[-1]
            positions, index, scores = positions[good], index[good], scores[good]
        positions = np.concatenate([self.positions, positions])
        index = np.concatenate([self._index, index])
        scores = np.concatenate([self.scores, scores])
        order = np.lexsort((index, -scores))[: self._k]
        self.positions, self._index, self.scores = positions[order], index[order], scores[order]


def find(file: EmbeddingFile, entities: pa.Array, names: Sequence[str]) -> NDArray[np.int64]:
    """Positions of entities in a file, [names].

    Args:
      file: where they are.
      entities: file.entities().
      names: as text, also those of integers.

    Raises:
      UserError: there is no such entity.
    """
    positions = []
    for name in names:
        if pa.types.is_integer(entities.type):
            try:
                value: int | str = int(name)
            except ValueError:
                raise UserError(f"--entity {name}: {file.path} has integers as entities; {_some(entities)}") from None
            position = pc.index(entities, value).as_py() if -(2**63) <= int(value) < 2**63 else -1
        else:
            position = pc.index(entities, pa.scalar(name, entities.type)).as_py()
        if position < 0:
            raise UserError(
                f"--entity {name}: not among the {len(entities):,} entities of {file.path}; {_hint(entities, name)}"
            )
        positions.append(position)
    return np.array(positions, np.int64)


def _hint(entities: pa.Array, name: str) -> str:
    if pa.types.is_integer(entities.type):
        return _some(entities)
    alike = entities.filter(pc.match_substring(entities, name, ignore_case=True))[:3].to_pylist()
    alike = alike or difflib.get_close_matches(name, entities[:_COMPARED_NAMES].to_pylist())
    return f"similar ones: {', '.join(alike)}" if alike else _some(entities)


def _some(entities: pa.Array) -> str:
    if pa.types.is_integer(entities.type):
        ends = pc.min_max(entities)
        return f"they go from {ends['min']} to {ends['max']}"
    return f"such as {', '.join(entities[:3].to_pylist())}"


def vectors_of(file: EmbeddingFile, positions: NDArray[np.int64]) -> NDArray[np.float32]:
    """Embeddings at positions of a file, [positions, dim].

    Raises:
      DataError: the file can't be read.
    """
    vectors = np.empty((len(positions), file.dim), np.float32)
    for block in file.blocks(containing=positions):
        here = (positions >= block.start) & (positions < block.start + len(block.indices))
        vectors[here] = block.values[positions[here] - block.start]
    return vectors


def opened(path: str, table: str | None) -> EmbeddingFile:
    """The file that --embeddings and --table name.

    Args:
      path: a file, or a directory of them.
      table: of which of them; None: there is only one.

    Raises:
      UserError: there is no such file, or it can't be read.
    """
    tables = embedding_tables(user_path(path))
    if not tables:
        raise UserError(
            f"--embeddings {path}: no file, and no directory with *.parquet files of an export (looked from "
            f"{Path.cwd()})"
        )
    if table is None and len(tables) > 1:
        raise UserError(f"--embeddings {path}: has the tables {', '.join(tables)}; choose one with --table")
    if table is not None and table not in tables:
        raise UserError(f"--table {table}: {path} has {', '.join(tables)}; choose one of them")
    return EmbeddingFile(tables[table] if table is not None else next(iter(tables.values())))


def searched(of: str, embeddings: str) -> EmbeddingFile:
    """The file that --of names.

    Args:
      of: a table of the export, or a file.
      embeddings: what --embeddings names.

    Raises:
      UserError: there is no such file, or it can't be read.
    """
    tables = embedding_tables(user_path(embeddings))
    if of not in tables and not user_path(of).is_file():
        raise UserError(f"--of {of}: neither a file nor a table of {embeddings}, which has {', '.join(tables)}")
    return EmbeddingFile(tables.get(of, user_path(of)))


def main() -> int:
    """Reads the command line, searches, and prints a table for each entity."""
    parser = ArgumentParser(
        prog="python -m projects.twhin.neighbors", description="Exact nearest neighbours among exported embeddings."
    )
    parser.add_argument("--embeddings", required=True, metavar="PATH", help="an export: its directory, or a file of it")
    parser.add_argument("--table", help="of a directory with several tables, the one that the entities are of")
    parser.add_argument(
        "--entity", required=True, action="append", metavar="NAME", help="whose neighbours; may be given several times"
    )
    parser.add_argument("--k", type=at_least_1, default=10, help="neighbours of each (%(default)s)")
    parser.add_argument(
        "--comparator",
        choices=get_args(Comparator),
        default="cos",
        help="cosine, dot product, or negative Euclidean distance (%(default)s)",
    )
    parser.add_argument(
        "--of",
        metavar="TABLE",
        help="search among these embeddings instead, such as tweets for a user: a table of --embeddings, or a file",
    )
    args = parser.parse_args()
    _search(args)
    return 0


def _search(args: argparse.Namespace) -> None:
    source = opened(args.embeddings, args.table)
    entities = source.entities()
    positions = find(source, entities, args.entity)
    queries = vectors_of(source, positions)
    for name, query in zip(args.entity, queries, strict=True):
        if not np.isfinite(query).all():
            raise UserError(
                f"--entity {name}: its embedding in {source.path} is not finite; export a checkpoint of a run that "
                "has not diverged"
            )
    target, own = source, positions if args.of is None else None
    if args.of is not None:
        target = searched(args.of, args.embeddings)
        if target.path.resolve() == source.path.resolve():
            own = positions
        else:
            entities = target.entities()
        if target.dim != source.dim:
            raise UserError(
                f"--of {args.of}: embeddings of {target.dim} numbers, those of {source.path} have {source.dim}; give "
                "those of one model"
            )
    found = nearest(target, queries, own, args.k, args.comparator)
    for name, neighbors in zip(args.entity, found, strict=True):
        sys.stdout.write(_table(name, entities, neighbors, args.comparator, target.path))


def _table(name: str, entities: pa.Array, neighbors: Neighbors, comparator: str, path: Path) -> str:
    names = entities.take(pa.array(neighbors.positions)).to_pylist()
    rows: list[list[Any]] = [
        [rank, str(entity), f"{score:.6g}"]
        for rank, (entity, score) in enumerate(zip(names, neighbors.scores.tolist(), strict=True), start=1)
    ]
    table = tabulate(
        rows, headers=["rank", "entity", comparator], disable_numparse=True, colalign=("right", "left", "right")
    )
    return f"nearest to {name} in {path}, of {len(entities):,}\n{table}\n\n"


if __name__ == "__main__":
    run(main, "searches again")
