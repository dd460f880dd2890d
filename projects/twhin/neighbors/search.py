"""Finds the nearest neighbors of the entities that options name, and prints or writes them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from tabulate import tabulate

from common.errors import UserError
from common.files.atomic_directory import atomic_directory
from common.files.embedding_files import EmbeddingFile
from common.process.standard_streams import print_report
from common.reader.parquet_file import create_parquet
from projects.twhin.model.config import ComparatorName
from projects.twhin.neighbors.exact import Neighbors, nearest
from projects.twhin.neighbors.index_files import open_index
from projects.twhin.neighbors.options import Options
from projects.twhin.neighbors.query_file import find_names, read_names
from projects.twhin.neighbors.sources import find_entities, open_source, open_target, read_vectors

_FILE = "neighbors.parquet"
_ROWS_PER_GROUP = 65_536


@dataclass(frozen=True)
class _Queries:
    """The entities whose neighbors to find.

    Attributes:
      names: their names, [queries].
      vectors: their embeddings, [queries, dim] float32, finite.
      own: their positions in the searched file, [queries] int64; None if they are not in it.
    """

    names: pa.Array
    vectors: NDArray[np.float32]
    own: NDArray[np.int64] | None


def search(options: Options) -> None:
    """Print a table of neighbors for each entity, or write neighbors.parquet.

    Raises:
      UserError: an option is invalid, or a file cannot be read or written.
    """
    if options.out is None:
        queries, target, entities = _prepare(options)
        neighbors = _find(options, queries, target)
        for number, name in enumerate(queries.names.to_pylist()):
            print_report(_table(str(name), number, entities, neighbors, options.comparator, target.path))
        return
    with atomic_directory(options.out) as partial:
        queries, target, entities = _prepare(options)
        _write(partial / _FILE, queries, entities, _find(options, queries, target))
    print_report(
        f"neighbors of {len(queries.names):,} entities among the {len(entities):,} of {target.path}: "
        f"{options.out / _FILE}\n"
    )


def _prepare(options: Options) -> tuple[_Queries, EmbeddingFile, pa.Array]:
    """Return the queries, the file to search, and its entities."""
    source = open_source(options.embeddings, options.table)
    target = source if options.of is None else open_target(options.of, options.embeddings)
    if target.dim != source.dim:
        raise UserError(
            f"--of {options.of}: the embeddings have dimension {target.dim}, but those of {source.path} have "
            f"dimension {source.dim}. Give embeddings of the same model"
        )
    entities = source.entities()
    positions = [find_entities(source, entities, options.names)]
    if options.entities is not None:
        positions.append(find_names(source, entities, read_names(options.entities), options.entities))
    own = np.concatenate(positions)
    names, vectors = entities.take(pa.array(own)), read_vectors(source, own)
    finite = np.isfinite(vectors).all(1)
    if not finite.all():
        raise UserError(
            f"--entity {names[int(np.argmin(finite))]}: its embedding in {source.path} is not finite. Export a "
            "checkpoint of a run that did not diverge"
        )
    if target.path.resolve() == source.path.resolve():
        return _Queries(names, vectors, own), target, entities
    return _Queries(names, vectors, None), target, target.entities()


def _find(options: Options, queries: _Queries, target: EmbeddingFile) -> Neighbors:
    if options.index is None:
        return nearest(target, queries.vectors, queries.own, options.k, options.comparator)
    index = open_index(options.index, target, options.comparator)
    return index.search(queries.vectors, queries.own, options.k, options.recall)


def _table(
    name: str, number: int, entities: pa.Array, neighbors: Neighbors, comparator: ComparatorName, path: Path
) -> str:
    found = neighbors.positions[number] >= 0
    names = entities.take(pa.array(neighbors.positions[number][found])).to_pylist()
    rows: list[list[Any]] = [
        [rank, str(entity), f"{score:.6g}"]
        for rank, (entity, score) in enumerate(zip(names, neighbors.scores[number][found].tolist(), strict=True), 1)
    ]
    table = tabulate(
        rows, headers=["rank", "entity", comparator], disable_numparse=True, colalign=("right", "left", "right")
    )
    return f"nearest to {name} among the {len(entities):,} entities of {path}\n{table}\n\n"


def _write(path: Path, queries: _Queries, entities: pa.Array, neighbors: Neighbors) -> None:
    """Write a row for each neighbor: entity, rank from 1, neighbor, score; in the order of the queries and ranks."""
    schema = pa.schema(
        [
            pa.field("entity", queries.names.type, nullable=False),
            pa.field("rank", pa.int64(), nullable=False),
            pa.field("neighbor", entities.type, nullable=False),
            pa.field("score", pa.float64(), nullable=False),
        ]
    )
    step = max(1, _ROWS_PER_GROUP // neighbors.positions.shape[1])
    with create_parquet(path, schema, compression="zstd") as writer:
        for begin in range(0, len(queries.names), step):
            positions, scores = (values[begin : begin + step] for values in neighbors)
            query, rank = np.nonzero(positions >= 0)
            columns = [
                queries.names.take(pa.array(begin + query)),
                pa.array(rank + 1),
                entities.take(pa.array(positions[query, rank])),
                pa.array(scores[query, rank]),
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))
