"""Reads the names of a batch of entities from a file, and finds them among those of an embedding file."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from common.errors import UserError
from common.files.embedding_files import EmbeddingFile, comparable
from common.reader.files import READ_ERRORS, DataError
from common.reader.parquet_file import check_columns_fit, is_parquet, no_column, open_parquet
from projects.twhin.data.similar_names import similar_names
from projects.twhin.tools.text_blocks import parse, read_blocks

_COLUMN = "entity"


def read_names(path: Path) -> pa.Array:
    """Return the names in a file, [names], strings or integers.

    Args:
      path: a Parquet file with the column entity, such as an embedding file, or a text file with a name per line.

    Raises:
      DataError: the file cannot be read, or has no names.
    """
    try:
        names = _from_parquet(path) if is_parquet(path) else _from_text(path)
    except DataError as error:
        raise DataError(f"--entities {error}") from error
    if not len(names):
        raise DataError(f"--entities {path}: no entities found. Give a file with at least one")
    return names


def _from_parquet(path: Path) -> pa.Array:
    try:
        with open_parquet(path) as file:
            if file.schema_arrow.names.count(_COLUMN) != 1:
                raise DataError(f"{path}: {no_column(_COLUMN, file.schema_arrow.names)}")
            kind = file.schema_arrow.field(_COLUMN).type
            if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_integer(kind)):
                raise DataError(f"{path}: column '{_COLUMN}': found {kind}, expected strings or integers")
            check_columns_fit(path, file, [_COLUMN])
            names = file.read(columns=[_COLUMN]).column(0)
    except READ_ERRORS as error:
        raise DataError(f"{path}: cannot read this file: {error}") from error
    if names.null_count:
        row = pc.index(names.is_null(), True).as_py()
        raise DataError(f"{path}: row {row} (counted from 0): column '{_COLUMN}': found null")
    # Chunks of strings may exceed what one array of 32-bit offsets holds.
    return names.cast(pa.large_string() if pa.types.is_string(kind) else kind).combine_chunks()


def _from_text(path: Path) -> pa.Array:
    tables = [parse(block, path, [_COLUMN], {_COLUMN: pa.string()}, "\t") for block in read_blocks(path)]
    chunks = [chunk.cast(pa.large_string()) for table in tables for chunk in table.column(_COLUMN).chunks]
    return pa.concat_arrays(chunks) if chunks else pa.array([], pa.large_string())


def find_names(file: EmbeddingFile, entities: pa.Array, names: pa.Array, path: Path) -> NDArray[np.int64]:
    """Return the positions of entities in an embedding file, [names] int64.

    An integer is the same as the text that writes it in decimal.

    Args:
      file: file to search.
      entities: all entities of the file, from file.entities().
      names: names of the entities to find.
      path: file of the names, for messages.

    Raises:
      UserError: a name is not in the file.
    """
    wanted, known = comparable(names, entities)
    positions = pc.index_in(wanted, known)
    if positions.null_count:
        unknown = wanted.filter(positions.is_null())
        examples = ", ".join(str(name) for name in unknown[:3].to_pylist())
        raise UserError(
            f"--entities {path}: {len(unknown):,} of {len(names):,} are not among the {len(entities):,} entities of "
            f"{file.path}: {examples}{' ...' if len(unknown) > 3 else ''}. Remove them. "
            f"{similar_names('entities', entities, str(unknown[0].as_py()))}"
        )
    return np.asarray(positions.to_numpy(), np.int64)
