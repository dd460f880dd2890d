"""Embeddings for other programs: `python -m projects.twhin.export --checkpoint DIR --out DIR`.

Owns the command line, and the files of the relations. The files of embeddings are those of
common/files/embedding_files.py. Memory: one table.
"""

import logging
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from tabulate import tabulate

from common.checkpointing.directory import find_checkpoints
from common.checkpointing.reader import CheckpointReader
from common.errors import ConfigError, UserError
from common.files.atomic_directory import atomic_directory
from common.files.embedding_files import write_embeddings
from common.process.logging import setup_logging
from common.process.paths import user_path
from common.process.program import ArgumentParser, run
from core.config import load_config_from_yaml
from core.run.directory import RunDirectory
from projects.twhin.config import TwhinConfig
from projects.twhin.model.config import TwhinModelConfig
from projects.twhin.model.pretrained import read_table_vocabulary
from projects.twhin.model.saved import read_operators, read_table, table_sizes

logger = logging.getLogger(__name__)


class Exported(NamedTuple):
    """A table in a file."""

    table: str
    num_rows: int
    num_left_out: int
    """Rows that belong to no entity."""
    dim: int
    vocabulary: str | None


def run_config(checkpoint: Path) -> TwhinModelConfig:
    """The model of the run that a checkpoint is of, as the run's config.yaml says.

    Raises:
      UserError: there is none, or it is no TwHIN's.
    """
    path = RunDirectory(str(checkpoint.resolve().parent.parent)).config
    try:
        return load_config_from_yaml(TwhinConfig, path).model
    except ConfigError as error:
        raise ConfigError(
            f"{checkpoint}: the configuration of its run, two directories above it, can't be read as TwHIN's: {error}"
        ) from error


def export(checkpoint: Path, out: Path) -> list[Exported]:
    """Writes <table>.parquet for each table, and relations/operators.parquet, to `out`, which appears when complete.

    Args:
      checkpoint: .../checkpoints/<step>.
      out: a directory; must not exist, or be empty.

    Raises:
      UserError: the checkpoint is missing, damaged or no TwHIN's, a vocabulary can't be read or doesn't fit, or `out`
        can't be written.
    """
    with CheckpointReader(checkpoint) as source:
        source.verify()
        return _export(source, out)


def _export(checkpoint: CheckpointReader, out: Path) -> list[Exported]:
    sizes = table_sizes(checkpoint)
    config = run_config(checkpoint.path)
    for name, table in config.tables.items():
        expected = (table.num_embeddings, table.embedding_dim)
        if sizes.get(name) != expected:
            found = f"{sizes[name][0]} x {sizes[name][1]}" if name in sizes else "not there"
            raise UserError(
                f"{checkpoint.path}: the table {name} is {found}, but the config.yaml of the run says "
                f"{expected[0]} x {expected[1]}: it was written by another run; give it where its own run has saved it"
            )
    vocabularies = {name: read_table_vocabulary(table) for name, table in config.tables.items()}
    exported = []
    with atomic_directory(out) as partial:
        logger.info("exporting %s", checkpoint.path)
        for name, table in config.tables.items():
            entities = vocabularies.pop(name)
            values = read_table(checkpoint, name, sizes[name])
            num_rows = len(values) if entities is None else len(entities)
            write_embeddings(partial / f"{name}.parquet", entities, values[:num_rows])
            exported.append(Exported(name, num_rows, len(values) - num_rows, values.shape[1], table.vocab))
            del values  # before the next one is read
        _write_operators(partial, config, read_operators(checkpoint))
    return exported


def _write_operators(
    out: Path, config: TwhinModelConfig, operators: dict[tuple[str, str], NDArray[np.float32]]
) -> None:
    """A row for each relation and side that it changes."""
    sides = ("lhs", "rhs") if config.operator_sides == "both" else (config.operator_sides,)
    rows = []
    taken: dict[tuple[str, str], int] = {}
    for number, relation in enumerate(config.relation_list):
        for side in sides:
            key = (side, f"{relation.operator}_{config.tables[relation.lhs].embedding_dim}")
            parameter: list[float] = []
            if relation.operator != "identity":
                parameter = operators[key][taken.get(key, 0)].reshape(-1).tolist()
                taken[key] = taken.get(key, 0) + 1
            rows.append((number, relation.name, relation.lhs, relation.rhs, side, relation.operator, parameter))
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
    pq.write_table(pa.Table.from_arrays(columns, schema=schema), out / "relations" / "operators.parquet")


def report(checkpoint: Path, out: Path, exported: list[Exported]) -> str:
    """What was made."""
    rows = [
        [each.table, f"{each.num_rows:,}", each.dim, each.vocabulary or "their indices", f"{out / each.table}.parquet"]
        for each in exported
    ]
    lines = [
        f"exported {checkpoint}",
        tabulate(rows, headers=["table", "entities", "dim", "entities from", "file"], disable_numparse=True),
    ]
    lines += [
        f"{each.table}: {each.num_left_out:,} rows beyond the vocabulary belong to no entity, and were left out"
        for each in exported
        if each.num_left_out
    ]
    lines.append(f"operators of the relations: {out / 'relations' / 'operators.parquet'}")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Reads the command line, exports, and tells what was made."""
    setup_logging(rank=0)
    parser = ArgumentParser(
        prog="python -m projects.twhin.export", description="Exports the embeddings of a run to Parquet files."
    )
    parser.add_argument(
        "--checkpoint",
        required=True,
        type=user_path,
        metavar="DIR",
        help=".../checkpoints/<step>, or the save_dir of a run: its newest complete checkpoint",
    )
    parser.add_argument(
        "--out", required=True, type=user_path, metavar="DIR", help="directory to make; must not exist, or be empty"
    )
    args = parser.parse_args()
    checkpoint = find_checkpoints(args.checkpoint)[-1]
    exported = export(checkpoint, args.out)
    sys.stdout.write(report(checkpoint, args.out, exported))
    return 0


if __name__ == "__main__":
    run(main, "begins anew")
