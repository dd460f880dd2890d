"""Exports the embeddings of a checkpoint.

Owns the file of relation operators and the report. common/files/embedding_files.py owns the embedding files.
Holds one table in memory.
"""

import logging
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from tabulate import tabulate

from common.checkpointing.reader import CheckpointReader
from common.files.atomic_directory import atomic_directory
from common.files.embedding_files import write_embeddings
from common.process.optional_packages import require_packages
from common.reader.parquet_file import create_parquet
from projects.twhin.model.config import TwhinModelConfig
from projects.twhin.model.pretrained import read_table_vocabulary
from projects.twhin.model.saved import check_table_sizes, read_operators, read_table
from projects.twhin.saved_config import read_run_config

logger = logging.getLogger(__name__)


class ExportedTable(NamedTuple):
    """Summary of a table that was written to a file.

    Attributes:
      name: name of the table.
      num_rows: number of rows written.
      num_skipped: number of rows beyond the vocabulary, which belong to no entity.
      dim: embedding dimension.
      vocabulary: path of the vocabulary. None if the entities are the row indices.
    """

    name: str
    num_rows: int
    num_skipped: int
    dim: int
    vocabulary: str | None


def export(checkpoint: Path, out: Path) -> list[ExportedTable]:
    """Write <table>.parquet and <table>.safetensors for each table, and relations/operators.parquet.

    Args:
      checkpoint: directory of the checkpoint, .../checkpoints/<step>.
      out: directory to create; must be empty if it exists. It appears when it is complete.

    Raises:
      UserError: the checkpoint is missing, damaged or not from TwHIN, a vocabulary cannot be read or does not fit its
        table, safetensors is not installed, or `out` cannot be written.
    """
    require_packages("an export", ["safetensors"])
    with CheckpointReader(checkpoint) as source, atomic_directory(out) as partial:
        return _export(source, partial)


def _export(checkpoint: CheckpointReader, out: Path) -> list[ExportedTable]:
    config = read_run_config(checkpoint.path).model
    sizes = check_table_sizes(checkpoint, config)
    vocabularies = {name: read_table_vocabulary(table) for name, table in config.tables.items()}
    checkpoint.verify()
    logger.info("exporting %s", checkpoint.path)
    exported = []
    for name, table in config.tables.items():
        entities = vocabularies.pop(name)
        values = read_table(checkpoint, name, sizes[name])
        num_rows = len(values) if entities is None else len(entities)
        write_embeddings(out / f"{name}.parquet", entities, values[:num_rows])
        _write_tensor(out / f"{name}.safetensors", values[:num_rows])
        exported.append(ExportedTable(name, num_rows, len(values) - num_rows, values.shape[1], table.vocab))
        del values  # free the memory before reading the next table
    _write_operators(out, config, read_operators(checkpoint))
    return exported


def _write_tensor(path: Path, values: NDArray[Any]) -> None:
    """Write the tensor `embedding` [rows, dim], float32. Its row i is the row of <table>.parquet with index i.

    Raises:
      OSError: the file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    try:
        save_file({"embedding": np.ascontiguousarray(values, np.float32)}, path)
    except SafetensorError as error:
        raise OSError(f"{path.name}: {error}") from error


def _write_operators(
    out: Path, config: TwhinModelConfig, operators: dict[tuple[str, str], NDArray[np.float32]]
) -> None:
    """Write a row for each relation and side that its operator transforms."""
    sides = ("lhs", "rhs") if config.operator_sides == "both" else (config.operator_sides,)
    rows = []
    # Position of the next relation among those that share an operator parameter.
    next_position: dict[tuple[str, str], int] = {}
    for relation_id, relation in enumerate(config.relation_list):
        for side in sides:
            key = (side, f"{relation.operator}_{config.tables[relation.lhs].embedding_dim}")
            parameter: list[float] = []
            if relation.operator != "identity":
                position = next_position.get(key, 0)
                parameter = operators[key][position].reshape(-1).tolist()
                next_position[key] = position + 1
            rows.append((relation_id, relation.name, relation.lhs, relation.rhs, side, relation.operator, parameter))
    schema = pa.schema(
        {
            "relation": pa.int64(),
            "name": pa.string(),
            "lhs": pa.string(),
            "rhs": pa.string(),
            "side": pa.string(),
            "operator": pa.string(),
            "parameter": pa.list_(pa.float32()),
        }
    )
    columns = [pa.array(column, field.type) for column, field in zip(zip(*rows, strict=True), schema, strict=True)]
    (out / "relations").mkdir()
    with create_parquet(out / "relations" / "operators.parquet", schema) as writer:
        writer.write_table(pa.Table.from_arrays(columns, schema=schema))


def report(checkpoint: Path, out: Path, exported: list[ExportedTable]) -> str:
    """Return a summary of the exported files."""
    rows = [
        [table.name, f"{table.num_rows:,}", table.dim, table.vocabulary or "row indices", f"{out / table.name}.parquet"]
        for table in exported
    ]
    lines = [
        f"exported {checkpoint}",
        tabulate(rows, headers=["table", "entities", "dim", "entities from", "file"], disable_numparse=True),
    ]
    lines += [
        f"{table.name}: skipped {table.num_skipped:,} rows beyond the vocabulary, which belong to no entity"
        for table in exported
        if table.num_skipped
    ]
    lines.append(f"the same embeddings as tensors: {out / '<table>.safetensors'}")
    lines.append(f"relation operators: {out / 'relations' / 'operators.parquet'}")
    return "\n".join(lines) + "\n"
