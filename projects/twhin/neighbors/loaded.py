"""Holds the embeddings of a file in memory, for a search with an index."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from common.errors import UserError
from common.files.embedding_files import EmbeddingFile
from common.process.memory import memory_shortage


@dataclass(frozen=True)
class LoadedEmbeddings:
    """The embeddings of a file.

    Attributes:
      path: path of the file.
      indices: rows of the entities in their table, [rows] int64.
      values: embeddings, [rows, dim] float32, finite.
      digest: digest of the values and their order. Entities can be renamed without changing it.
    """

    path: Path
    indices: NDArray[np.int64]
    values: NDArray[np.float32]
    digest: str


def load_embeddings(file: EmbeddingFile) -> LoadedEmbeddings:
    """Read all embeddings of a file.

    Raises:
      UserError: the file cannot be read, has an embedding whose square overflows float32, or memory does not suffice
        for an index: two copies of the embeddings, and an eighth of their size.
    """
    size = 4 * file.num_rows * file.dim
    if shortage := memory_shortage(2 * size + size // 8):
        raise UserError(f"{file.path}: searching with an index {shortage}")
    values = np.empty((file.num_rows, file.dim), np.float32)
    indices = np.empty(file.num_rows, np.int64)
    digest = xxhash.xxh3_128(f"{file.num_rows} x {file.dim}".encode())
    for block in file.blocks():
        rows = slice(block.start, block.start + len(block.indices))
        values[rows], indices[rows] = block.values, block.indices
        digest.update(np.ascontiguousarray(values[rows]).data)
        with np.errstate(over="ignore", invalid="ignore"):
            finite = np.isfinite(np.einsum("nd,nd->n", values[rows], values[rows]))
        if not finite.all():
            raise UserError(
                f"{file.path}: row {block.start + int(np.argmin(finite))} (counted from 0): the embedding is not "
                "finite, or too large for an index. Search without --index, which skips non-finite embeddings"
            )
    return LoadedEmbeddings(file.path, indices, values, digest.hexdigest())
