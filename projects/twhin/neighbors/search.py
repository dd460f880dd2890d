"""Finds and prints the nearest neighbors of entities.

The search is exact: it compares all embeddings in float64. Holds all entities, one row group of embeddings, and k rows
in memory.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from tabulate import tabulate

from common.errors import UserError
from common.files.embedding_files import EmbeddingFile, embedding_tables
from common.process.paths import user_path
from common.process.standard_streams import print_report
from projects.twhin.data.similar_names import name_examples, similar_names
from projects.twhin.model.config import ComparatorName


class Neighbors(NamedTuple):
    """Nearest neighbors of one entity, best first.

    Attributes:
      positions: positions in the searched file, [at most k] int64.
      scores: scores, [at most k] float64.
    """

    positions: NDArray[np.int64]
    scores: NDArray[np.float64]


def nearest(
    file: EmbeddingFile, queries: NDArray[np.float32], own: NDArray[np.int64] | None, k: int, comparator: ComparatorName
) -> list[Neighbors]:
    """Return the nearest neighbors of each query, in the order of the queries.

    Neighbors with equal scores are ordered by index. Embeddings with a non-finite score are skipped.

    Args:
      file: file to search.
      queries: query embeddings, [queries, file.dim].
      own: positions of the queries in the file, [queries], to skip. None if the queries are not in the file.
      k: number of neighbors per query.
      comparator: cos: cosine (norms are at least 1e-12), dot: dot product, l2: negative Euclidean distance.

    Raises:
      DataError: the file cannot be read.
    """
    best = [_TopK(k) for _ in queries]
    for block in file.blocks():
        values = block.values.astype(np.float64)
        for number, query in enumerate(queries.astype(np.float64)):
            scores = _scores(values, query, comparator)
            positions = np.arange(block.start, block.start + len(scores))
            candidates = np.isfinite(scores) if own is None else np.isfinite(scores) & (positions != own[number])
            best[number].add(positions[candidates], block.indices[candidates], scores[candidates])
    return [Neighbors(top.positions, top.scores) for top in best]


def _scores(values: NDArray[np.float64], query: NDArray[np.float64], comparator: ComparatorName) -> NDArray[np.float64]:
    """Return the scores of all rows, [rows] float64.

    Equal rows get equal scores at any position. BLAS does not guarantee that: its results may differ in the last bit.
    """
    if comparator == "l2":
        difference = values - query
        return np.asarray(-np.sqrt(np.einsum("nd,nd->n", difference, difference)))
    product = np.einsum("nd,d->n", values, query)
    if comparator == "dot":
        return np.asarray(product)
    norms = np.sqrt(np.einsum("nd,nd->n", values, values))
    with np.errstate(invalid="ignore"):  # infinite embeddings
        return np.asarray(product / np.maximum(norms, 1e-12) / max(float(np.sqrt(query @ query)), 1e-12))


class _TopK:
    """Keeps the k rows with the highest scores so far.

    Attributes:
      positions: positions in the file, best first, [at most k] int64.
      scores: scores, [at most k] float64.
    """

    def __init__(self, k: int) -> None:
        self._k = k
        self.positions = np.empty(0, np.int64)
        self.scores = np.empty(0, np.float64)
        self._indices = np.empty(0, np.int64)

    def add(self, positions: NDArray[np.int64], indices: NDArray[np.int64], scores: NDArray[np.float64]) -> None:
        """Add rows, [rows] each. Ties keep the row with the lower index."""
        if len(self.scores) == self._k:
            competitive = scores >= self.scores[-1]
            positions, indices, scores = positions[competitive], indices[competitive], scores[competitive]
        positions = np.concatenate([self.positions, positions])
        indices = np.concatenate([self._indices, indices])
        scores = np.concatenate([self.scores, scores])
        order = np.lexsort((indices, -scores))[: self._k]
        self.positions, self._indices, self.scores = positions[order], indices[order], scores[order]


def find_entities(file: EmbeddingFile, entities: pa.Array, names: Sequence[str]) -> NDArray[np.int64]:
    """Return the positions of entities in a file, [names] int64.

    Args:
      file: file to search.
      entities: all entities of the file, from file.entities().
      names: names of the entities to find. Integers are given as text.

    Raises:
      UserError: a name is not in the file.
    """
    positions = []
    for name in names:
        if pa.types.is_integer(entities.type):
            try:
                value: int | str = int(name)
            except ValueError:
                raise UserError(
                    f"--entity {name}: the entities of {file.path} are integers. {name_examples('entities', entities)}"
                ) from None
            try:
                position = pc.index(entities, pa.scalar(value, entities.type)).as_py()
            except (OverflowError, pa.ArrowInvalid):  # no entity of this type is that large or small
                position = -1
        else:
            position = pc.index(entities, pa.scalar(name, entities.type)).as_py()
        if position < 0:
            raise UserError(
                f"--entity {name}: not among the {len(entities):,} entities of {file.path}. "
                f"{similar_names('entities', entities, name)}"
            )
        positions.append(position)
    return np.array(positions, np.int64)


def read_vectors(file: EmbeddingFile, positions: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the embeddings at positions of a file, [positions, dim].

    Raises:
      DataError: the file cannot be read.
    """
    vectors = np.empty((len(positions), file.dim), np.float32)
    for block in file.blocks(containing=positions):
        in_block = (positions >= block.start) & (positions < block.start + len(block.indices))
        vectors[in_block] = block.values[positions[in_block] - block.start]
    return vectors


def open_source(path: str, table: str | None) -> EmbeddingFile:
    """Open the file that --embeddings and --table select.

    Args:
      path: a file, or a directory of embedding files.
      table: name of the table in a directory. None if the directory has only one.

    Raises:
      UserError: there is no such file, or it cannot be read.
    """
    tables = embedding_tables(user_path(path))
    if not tables:
        raise UserError(
            f"--embeddings {path}: neither a file nor a directory with the *.parquet files of an export (current "
            f"directory: {Path.cwd()})"
        )
    if table is None and len(tables) > 1:
        raise UserError(f"--embeddings {path}: has the tables {', '.join(tables)}. Choose one with --table")
    if table is not None and table not in tables:
        raise UserError(f"--table {table}: not in {path}, which has the tables {', '.join(tables)}. Choose one of them")
    return EmbeddingFile(tables[table] if table is not None else next(iter(tables.values())))


def open_target(table: str, embeddings: str) -> EmbeddingFile:
    """Open the file that --of selects.

    Args:
      table: a table of the export, or a file.
      embeddings: value of --embeddings.

    Raises:
      UserError: there is no such file, or it cannot be read.
    """
    tables = embedding_tables(user_path(embeddings))
    if table not in tables and not user_path(table).is_file():
        raise UserError(
            f"--of {table}: neither a file nor a table of {embeddings}, which has the tables {', '.join(tables)}"
        )
    return EmbeddingFile(tables.get(table, user_path(table)))


def search(
    embeddings: str, table: str | None, names: Sequence[str], k: int, comparator: ComparatorName, of: str | None
) -> None:
    """Print a table of neighbors for each entity.

    Args:
      embeddings: value of --embeddings.
      table: value of --table.
      names: names of the entities.
      k: number of neighbors per entity.
      comparator: value of --comparator.
      of: value of --of; None searches the table of the entities.

    Raises:
      UserError: an option is invalid, or a file cannot be read.
    """
    source = open_source(embeddings, table)
    entities = source.entities()
    positions = find_entities(source, entities, names)
    queries = read_vectors(source, positions)
    for name, query in zip(names, queries, strict=True):
        if not np.isfinite(query).all():
            raise UserError(
                f"--entity {name}: its embedding in {source.path} is not finite. Export a checkpoint of a run that did "
                "not diverge"
            )
    target, own = source, positions if of is None else None
    if of is not None:
        target = open_target(of, embeddings)
        if target.path.resolve() == source.path.resolve():
            own = positions
        else:
            entities = target.entities()
        if target.dim != source.dim:
            raise UserError(
                f"--of {of}: the embeddings have dimension {target.dim}, but those of {source.path} have "
                f"dimension {source.dim}. Give embeddings of the same model"
            )
    results = nearest(target, queries, own, k, comparator)
    for name, neighbors in zip(names, results, strict=True):
        print_report(_table(name, entities, neighbors, comparator, target.path))


def _table(name: str, entities: pa.Array, neighbors: Neighbors, comparator: str, path: Path) -> str:
    names = entities.take(pa.array(neighbors.positions)).to_pylist()
    rows: list[list[Any]] = [
        [rank, str(entity), f"{score:.6g}"]
        for rank, (entity, score) in enumerate(zip(names, neighbors.scores.tolist(), strict=True), start=1)
    ]
    table = tabulate(
        rows, headers=["rank", "entity", comparator], disable_numparse=True, colalign=("right", "left", "right")
    )
    return f"nearest to {name} among the {len(entities):,} entities of {path}\n{table}\n\n"
