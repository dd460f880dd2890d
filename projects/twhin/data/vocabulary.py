"""Vocabularies: Parquet files with the columns entity and index, which assign an entity to each row of a table."""

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from common.process.paths import user_path
from common.reader.files import READ_ERRORS, DataError
from common.reader.parquet_file import check_columns_fit, create_parquet, open_parquet


def write_vocabulary(path: Path, entities: pa.Array) -> None:
    """Write a vocabulary. The folder is created if it does not exist.

    Args:
      path: file to write.
      entities: entity of each row: [rows], strings or integers, without nulls.
    """
    path.parent.mkdir(exist_ok=True)
    table = pa.table({"entity": entities, "index": np.arange(len(entities))})
    with create_parquet(path, table.schema, compression="zstd") as writer:
        writer.write_table(table)


def vocabulary_digest(path: Path) -> str:
    """Return a digest of a vocabulary file's bytes. Raises DataError if it cannot be read."""
    try:
        with user_path(path).open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot read this file as a vocabulary: {error}") from error


def read_vocabulary(path: Path) -> pa.Array:
    """Return the entity of each row: [rows], strings or integers.

    Raises:
      DataError: the file cannot be read; a column is missing or has the wrong type; an entity is null or a duplicate;
        or the indices are not 0 to rows - 1, each once.
    """
    try:
        with open_parquet(user_path(path)) as file:
            check_columns_fit(path, file, ["entity", "index"])
            table = file.read(columns=["entity", "index"])
    except READ_ERRORS as error:
        raise DataError(f"{path}: cannot read this file as a vocabulary: {error}") from error
    if missing := {"entity", "index"} - set(table.column_names):
        raise DataError(f"{path}: no column '{min(missing)}'. A vocabulary has the columns entity and index")
    entities, index = (table.column(name).combine_chunks() for name in ("entity", "index"))
    entity_type = entities.type
    is_text = pa.types.is_string(entity_type) or pa.types.is_large_string(entity_type)
    if not (is_text or pa.types.is_integer(entity_type)):
        raise DataError(f"{path}: column 'entity': found {entity_type}, expected strings or integers")
    if not pa.types.is_integer(index.type):
        raise DataError(f"{path}: column 'index': found {index.type}, expected integers")
    for name, values in (("entity", entities), ("index", index)):
        if values.null_count:
            raise DataError(f"{path}: row {pc.index(values.is_null(), True).as_py()}: column '{name}': found null")
    order = np.argsort(index.to_numpy(), kind="stable")
    if (wrong := index.to_numpy()[order] != np.arange(len(index))).any():
        position = int(np.argmax(wrong))
        raise DataError(
            f"{path}: column 'index': found {index[order[position]]}, but {position} is the next index. The "
            f"{len(index)} rows of this vocabulary need the indices from 0 to {len(index) - 1}, each once"
        )
    ordered = entities.take(pc.array_sort_indices(entities))
    duplicate = pc.index(pc.equal(ordered[1:], ordered[:-1]), True).as_py()
    if duplicate >= 0:
        raise DataError(f"{path}: column 'entity': {ordered[duplicate].as_py()!r} occurs more than once")
    return entities.take(pa.array(order))
