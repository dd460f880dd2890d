"""Reads the initial rows of a table from an export (matched by entity or index) or a checkpoint (by index)."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from common.checkpointing.directory import find_checkpoints
from common.checkpointing.reader import CheckpointReader
from common.errors import ConfigError, UserError
from common.files.embedding_files import EmbeddingFile, comparable, embedding_tables
from common.modules.embedding.config import EmbeddingBagConfig
from common.process.paths import user_path
from common.reader.files import DataError
from projects.twhin.data.vocabulary import read_vocabulary
from projects.twhin.model.saved import read_table, table_sizes

logger = logging.getLogger(__name__)

_ROWS_PER_BLOCK = 65_536
"""Number of rows of a checkpoint's table that are yielded together."""


class Rows(NamedTuple):
    """A block of rows of a table.

    Attributes:
      indices: positions in the table, below num_embeddings: [n], int64.
      values: embeddings: [n, embedding_dim], float32.
    """

    indices: NDArray[np.int64]
    values: NDArray[Any]


def check_vocabulary(table: EmbeddingBagConfig) -> None:
    """Check the table's vocabulary, and log a warning if it has fewer entities than the table has rows.

    Raises:
      ConfigError: the vocabulary cannot be read, or has more entities than the table has rows.
    """
    entities = read_table_vocabulary(table)
    if entities is not None and len(entities) < table.num_embeddings:
        logger.warning(
            "table %s: num_embeddings is %d, but its vocabulary has only %d entities. The other rows belong to no "
            "entity, but they are still drawn as negatives and ranked as candidates",
            table.name,
            table.num_embeddings,
            len(entities),
        )


def read_table_vocabulary(table: EmbeddingBagConfig) -> pa.Array | None:
    """Return the entities of the table's first rows, or None if the table has no vocabulary.

    Returns:
      Entities: [at most num_embeddings], strings or integers.

    Raises:
      ConfigError: the vocabulary cannot be read, or has more entities than the table has rows.
    """
    if table.vocab is None:
        return None
    key_path = f"{_key_path(table)}.vocab"
    try:
        entities = read_vocabulary(Path(table.vocab))
    except DataError as error:
        raise ConfigError(f"{key_path}: {error}") from error
    if len(entities) > table.num_embeddings:
        raise ConfigError(
            f"{key_path}: {table.vocab} has {len(entities)} entities, but num_embeddings is {table.num_embeddings}. "
            "Raise num_embeddings or give the vocabulary of this table"
        )
    return entities


def pretrained_source(table: EmbeddingBagConfig) -> Path:
    """Return the export or the checkpoint that the table is initialized from.

    If the configuration names a save_dir, this is its newest complete checkpoint.

    Args:
      table: table with `pretrained`.

    Raises:
      ConfigError: the directory does not exist or contains no checkpoint.
    """
    assert table.pretrained is not None, "the table has no pretrained rows"
    key_path, uri = f"{_key_path(table)}.pretrained.embedding_snapshot_uri", table.pretrained.embedding_snapshot_uri
    path = user_path(uri)
    if embedding_tables(path):
        return path
    if not path.is_dir():
        raise ConfigError(f"{key_path}: {uri}: no such directory (current directory: {Path.cwd()})")
    try:
        return find_checkpoints(path)[-1]
    except UserError as error:
        raise ConfigError(f"{key_path}: {error}") from error


def pretrained_rows(table: EmbeddingBagConfig, source: Path) -> Iterator[Rows]:
    """Return an iterator over the rows that the table is initialized with, in blocks.

    Rows are matched by entity if the table has a vocabulary and the export names its rows, otherwise by index. The call
    raises the errors that it can detect without reading all rows; the iteration raises the others. The number of rows
    is logged at the end.

    Args:
      table: table with `pretrained`.
      source: path that pretrained_source() returns.

    Raises:
      ConfigError: the source is not a checkpoint, lacks the table, or its table has another dimension or more rows.
      UserError: the source cannot be read. Some of these errors are raised during the iteration.
    """
    assert table.pretrained is not None, "the table has no pretrained rows"
    key_path, name = f"{_key_path(table)}.pretrained", table.pretrained.emb_name
    try:
        if files := embedding_tables(source):
            _check_name(name, list(files), key_path, source)
            file = EmbeddingFile(files[name])
            _check_dim(file.dim, table, key_path, file.path)
            vocabulary = read_table_vocabulary(table) if file.is_named else None
            if vocabulary is None:
                return _log_count(_rows_by_index(file, table, key_path), table, source, "index")
            return _log_count(_rows_by_entity(file, vocabulary, table, key_path), table, source, "entity")
        return _log_count(_checkpoint_rows(source, table, key_path), table, source, "index")
    except ConfigError:
        raise
    except UserError as error:
        raise ConfigError(f"{key_path}: {error}") from error


def _key_path(table: EmbeddingBagConfig) -> str:
    """Return the key path of the table in the configuration, for messages."""
    return f"model.embeddings.tables[{table.name}]"


def _check_name(name: str, names: list[str], key_path: str, source: Path) -> None:
    if name not in names:
        raise ConfigError(
            f"{key_path}.emb_name: {source} has no table {name}. Its tables are: {', '.join(names) or 'none'}"
        )


def _check_dim(dim: int, table: EmbeddingBagConfig, key_path: str, path: Path) -> None:
    if dim != table.embedding_dim:
        raise ConfigError(
            f"{key_path}: the embeddings in {path} have dimension {dim}, but embedding_dim is {table.embedding_dim}"
        )


def _index_error(index: int, table: EmbeddingBagConfig, key_path: str, path: Path) -> ConfigError:
    return ConfigError(f"{key_path}: found index {index} in {path}, but num_embeddings is {table.num_embeddings}")


def _rows_by_index(file: EmbeddingFile, table: EmbeddingBagConfig, key_path: str) -> Iterator[Rows]:
    for block in file.blocks():
        wrong = (block.indices < 0) | (block.indices >= table.num_embeddings)
        if wrong.any():
            raise _index_error(int(block.indices[np.argmax(wrong)]), table, key_path, file.path)
        yield Rows(block.indices, block.values)


def _rows_by_entity(
    file: EmbeddingFile, vocabulary: pa.Array, table: EmbeddingBagConfig, key_path: str
) -> Iterator[Rows]:
    entities = file.entities()
    positions = pc.index_in(*comparable(entities, vocabulary))
    if positions.null_count == len(positions):
        raise ConfigError(
            f"{key_path}: no entity of {file.path} is in {table.vocab}. Both must use the same names for entities"
        )
    rows = positions.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    for block in file.blocks():
        indices = rows[block.start : block.start + len(block.indices)]
        yield Rows(indices[indices >= 0], block.values[indices >= 0])


def _checkpoint_rows(source: Path, table: EmbeddingBagConfig, key_path: str) -> Iterator[Rows]:
    """Check the checkpoint immediately, and return an iterator that reads it."""
    assert table.pretrained is not None
    name = table.pretrained.emb_name
    checkpoint = CheckpointReader(source)
    checkpoint.verify()
    sizes = table_sizes(checkpoint)
    _check_name(name, list(sizes), key_path, source)
    num_rows, dim = sizes[name]
    _check_dim(dim, table, key_path, source)
    if num_rows > table.num_embeddings:
        raise _index_error(num_rows - 1, table, key_path, source)
    if table.vocab is not None:
        logger.warning(
            "table %s is initialized from %s by index, and its vocabulary is ignored, because a checkpoint does not "
            "name the entities of its rows. To start from another graph, export its embeddings and use the export",
            table.name,
            source,
        )
    return _read_blocks(checkpoint, name, sizes[name])


def _read_blocks(checkpoint: CheckpointReader, name: str, size: tuple[int, int]) -> Iterator[Rows]:
    with checkpoint:
        values = read_table(checkpoint, name, size)
    for start in range(0, len(values), _ROWS_PER_BLOCK):
        block = values[start : start + _ROWS_PER_BLOCK]
        yield Rows(np.arange(start, start + len(block)), block)


def _log_count(blocks: Iterator[Rows], table: EmbeddingBagConfig, source: Path, key: str) -> Iterator[Rows]:
    """Yield blocks, then log the number of rows."""
    count = 0
    for rows in blocks:
        count += len(rows.indices)
        yield rows
    logger.info(
        "table %s: read initial values of %s of %s rows from %s, matched by %s",
        table.name,
        f"{count:,}",
        f"{table.num_embeddings:,}",
        source,
        key,
    )
