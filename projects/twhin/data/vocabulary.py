"""Which entity each row of a table belongs to: Parquet files with the columns entity and index."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from common.process.paths import user_path
from common.reader.files import READ_ERRORS, DataError


def write_vocabulary(path: Path, entities: pa.Array) -> None:
    """Writes `entities` [rows], strings or integers without nulls; that of row i at position i; makes the folder."""
    path.parent.mkdir(exist_ok=True)
    table = pa.table({"entity": entities, "index": np.arange(len(entities))})
    pq.write_table(table, path, compression="zstd")


def read_vocabulary(path: Path) -> pa.Array:
    """The entities [rows], strings or integers, that of row i at position i.

    Raises:
      DataError: the file can't be read, lacks a column or has it in another type, an entity is missing or there twice,
        or the indices are not 0 to rows - 1, each once.
    """
    try:
        with pq.ParquetFile(user_path(path)) as file:
            table = file.read(columns=["entity", "index"])
    except READ_ERRORS as error:
        raise DataError(f"{path}: can't be read as a vocabulary: {error}") from error
    if missing := {"entity", "index"} - set(table.column_names):
        raise DataError(f"{path}: no column '{min(missing)}'; a vocabulary has the columns entity and index")
    entities, index = (table.column(name).combine_chunks() for name in ("entity", "index"))
    kind = entities.type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_integer(kind)):
        raise DataError(f"{path}: column 'entity': {kind} found, strings or integers expected")
    if not pa.types.is_integer(index.type):
        raise DataError(f"{path}: column 'index': {index.type} found, integers expected")
    for name, values in (("entity", entities), ("index", index)):
        if values.null_count:
            raise DataError(f"{path}: row {pc.index(values.is_null(), True).as_py()}: column '{name}': null found")
    order = np.argsort(index.to_numpy(), kind="stable")
    if (wrong := index.to_numpy()[order] != np.arange(len(index))).any():
        position = int(np.argmax(wrong))
        raise DataError(
            f"{path}: column 'index': {index[order[position]]} found where {position} comes next; the {len(index)} "
            f"rows of a vocabulary have the indices from 0 to {len(index) - 1}, each once"
        )
    ordered = entities.take(pc.array_sort_indices(entities))
    twice = pc.index(pc.equal(ordered[1:], ordered[:-1]), True).as_py()
    if twice >= 0:
        raise DataError(f"{path}: column 'entity': {ordered[twice].as_py()!r} is there several times")
    return entities.take(pa.array(order))
