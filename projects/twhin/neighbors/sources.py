"""Opens the files of embeddings that options select, and finds entities in them by name."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from common.errors import UserError
from common.files.embedding_files import EmbeddingFile, embedding_tables
from common.process.paths import user_path
from projects.twhin.data.similar_names import name_examples, similar_names


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
