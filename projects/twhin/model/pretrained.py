"""Rows that a table starts from: of an export, by entity or by index, or of a checkpoint, by index."""

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
from common.files.embedding_files import EmbeddingFile, embedding_tables
from common.modules.embedding.config import EmbeddingBagConfig
from common.process.paths import user_path
from common.reader.files import DataError
from projects.twhin.data.vocabulary import read_vocabulary
from projects.twhin.model.saved import read_table, table_sizes

logger = logging.getLogger(__name__)

# Of a checkpoint's table, that are handed out together.
_ROWS_PER_BLOCK = 65_536


class Rows(NamedTuple):
    """Rows of a table.

    Attributes:
      indices: [n], int64, below num_embeddings.
      values: [n, embedding_dim], float32.
    """

    indices: NDArray[np.int64]
    values: NDArray[Any]


def check_vocabulary(table: EmbeddingBagConfig) -> None:
    """Raises ConfigError where the table's vocabulary can't be read, or has more entities than the table has rows, and
    warns where it has fewer."""
    entities = read_table_vocabulary(table)
    if entities is not None and len(entities) < table.num_embeddings:
        logger.warning(
            "table %s: num_embeddings is %d, but its vocabulary has %d entities; the other rows are nobody's, and are "
            "drawn as negatives and ranked as candidates all the same",
            table.name,
            table.num_embeddings,
            len(entities),
        )


def read_table_vocabulary(table: EmbeddingBagConfig) -> pa.Array | None:
    """The entities of the table's first rows, [at most num_embeddings], strings or integers; None: it names none.

    Raises:
      ConfigError: the vocabulary can't be read, or has more entities than the table has rows.
    """
    if table.vocab is None:
        return None
    place = f"{_place(table)}.vocab"
    try:
        entities = read_vocabulary(Path(table.vocab))
    except DataError as error:
        raise ConfigError(f"{place}: {error}") from error
    if len(entities) > table.num_embeddings:
        raise ConfigError(
            f"{place}: {table.vocab} has {len(entities)} entities, but num_embeddings is {table.num_embeddings}; raise "
            "it, or give this table's own vocabulary"
        )
    return entities


def pretrained_source(table: EmbeddingBagConfig) -> Path:
    """What the table starts from: an export, or a checkpoint, of a save_dir the newest complete one.

    Args:
      table: with `pretrained`.

    Raises:
      ConfigError: there is no such directory, or no checkpoint in it.
    """
    assert table.pretrained is not None, "the table starts from drawn values"
    place, uri = f"{_place(table)}.pretrained.embedding_snapshot_uri", table.pretrained.embedding_snapshot_uri
    path = user_path(uri)
    if embedding_tables(path):
        return path
    if not path.is_dir():
        raise ConfigError(f"{place}: {uri}: no such directory (looked from {Path.cwd()})")
    try:
        return find_checkpoints(path)[-1]
    except UserError as error:
        raise ConfigError(f"{place}: {error}") from error


def pretrained_rows(table: EmbeddingBagConfig, source: Path) -> Iterator[Rows]:
    """The rows that the table starts from, in blocks; what shows without reading them all is checked at the call.

    By entity where the table has a vocabulary and the export names its rows, else by index. How many rows there were
    is logged at the end.

    Args:
      table: with `pretrained`.
      source: as pretrained_source() says.

    Raises:
      ConfigError: it is no checkpoint, has no such table, or one of another dimension, or of more rows than this one.
      UserError: it can't be read; some of it perhaps not until the iteration.
    """
    assert table.pretrained is not None, "the table starts from drawn values"
    place, name = f"{_place(table)}.pretrained", table.pretrained.emb_name
    try:
        if files := embedding_tables(source):
            _check_name(name, list(files), place, source)
            file = EmbeddingFile(files[name])
            _check_dim(file.dim, table, place, file.path)
            vocabulary = read_table_vocabulary(table) if file.is_named else None
            by = "index" if vocabulary is None else "entity"
            blocks = _by_index(file, table, place) if vocabulary is None else _by_entity(file, vocabulary, table, place)
        else:
            checkpoint = CheckpointReader(source)
            checkpoint.verify()
            sizes = table_sizes(checkpoint)
            _check_name(name, list(sizes), place, source)
            num_rows, dim = sizes[name]
            _check_dim(dim, table, place, source)
            if num_rows > table.num_embeddings:
                raise _beyond(num_rows - 1, table, place, source)
            if table.vocab is not None:
                logger.warning(
                    "table %s starts from %s by index, whatever its vocabulary: a checkpoint doesn't say whose its "
                    "rows are. Export another graph's, and start from the export",
                    table.name,
                    source,
                )
            by = "index"
            blocks = _of_checkpoint(checkpoint, name, sizes[name])
    except ConfigError:
        raise
    except UserError as error:
        raise ConfigError(f"{place}: {error}") from error
    return _counted(blocks, table, source, by)


def _place(table: EmbeddingBagConfig) -> str:
    """Of a table in the configuration, for messages."""
    return f"model.embeddings.tables[{table.name}]"


def _check_name(name: str, names: list[str], place: str, source: Path) -> None:
    if name not in names:
        raise ConfigError(f"{place}.emb_name: {source} has no table {name}; it has {', '.join(names) or 'none'}")


def _check_dim(dim: int, table: EmbeddingBagConfig, place: str, path: Path) -> None:
    if dim != table.embedding_dim:
        raise ConfigError(f"{place}: embeddings of {dim} numbers in {path}, but embedding_dim is {table.embedding_dim}")


def _beyond(index: int, table: EmbeddingBagConfig, place: str, path: Path) -> ConfigError:
    return ConfigError(f"{place}: index {index} found in {path}, but num_embeddings is {table.num_embeddings}")


def _by_index(file: EmbeddingFile, table: EmbeddingBagConfig, place: str) -> Iterator[Rows]:
    for block in file.blocks():
        wrong = (block.indices < 0) | (block.indices >= table.num_embeddings)
        if wrong.any():
            raise _beyond(int(block.indices[np.argmax(wrong)]), table, place, file.path)
        yield Rows(block.indices, block.values)


def _by_entity(file: EmbeddingFile, vocabulary: pa.Array, table: EmbeddingBagConfig, place: str) -> Iterator[Rows]:
    entities = file.entities()
    both_integers = pa.types.is_integer(vocabulary.type) and pa.types.is_integer(entities.type)
    kind = pa.int64() if both_integers else pa.large_string()
    found = pc.index_in(entities.cast(kind), vocabulary.cast(kind))
    if found.null_count == len(found):
        raise ConfigError(f"{place}: no entity of {file.path} is in {table.vocab}; both must name entities alike")
    rows = found.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    for block in file.blocks():
        indices = rows[block.start : block.start + len(block.indices)]
        yield Rows(indices[indices >= 0], block.values[indices >= 0])


def _of_checkpoint(checkpoint: CheckpointReader, name: str, size: tuple[int, int]) -> Iterator[Rows]:
    with checkpoint:
        values = read_table(checkpoint, name, size)
    for start in range(0, len(values), _ROWS_PER_BLOCK):
        block = values[start : start + _ROWS_PER_BLOCK]
        yield Rows(np.arange(start, start + len(block)), block)


def _counted(blocks: Iterator[Rows], table: EmbeddingBagConfig, source: Path, by: str) -> Iterator[Rows]:
    count = 0
    for rows in blocks:
        count += len(rows.indices)
        yield rows
    logger.info(
        "table %s: %s of %s rows start from %s, by %s",
        table.name,
        f"{count:,}",
        f"{table.num_embeddings:,}",
        source,
        by,
    )
