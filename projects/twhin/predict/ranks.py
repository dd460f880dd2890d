"""Writes the rank of every edge of a partition or of files: those that the evaluation's metrics are means of."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from tabulate import tabulate

from common.batch import Batch
from common.errors import UserError
from common.process.progress import Progress
from common.reader.files import DataError
from common.reader.parquet import ParquetTable
from common.reader.reader import BatchReader, Columns
from core.metrics.ranking import FILTERED, RAW, RankingMetrics
from projects.twhin.data.batch import EdgeBatch
from projects.twhin.data.edges import BatchBuilder, EdgeDataset, edge_table
from projects.twhin.data.known_edges import KnownEdges, open_known_edges
from projects.twhin.model.ranking import Candidates, rank_edges
from projects.twhin.predict.edge_file import EdgeFile
from projects.twhin.predict.saved_model import SavedModel, SavedRun

# Larger batches look up the tables less often, and hold more known edges at once.
_BATCH_SIZE = 1024

_SIDES = ("head", "tail")


class RankedEdges(NamedTuple):
    """Edges to rank.

    Attributes:
      table: the edges.
      known: finds the known edges that filtered ranks ignore; None for raw ranks only.
    """

    table: ParquetTable
    known: KnownEdges | None


def open_edges(run: SavedRun, edges: str, known: Sequence[str] | None) -> RankedEdges:
    """Open the edges to rank, and read the known edges.

    Args:
      run: the model.
      edges: a partition of the run, or a glob pattern, file or directory of edges.
      known: glob pattern, file or directory of each table of known edges; None for those of the run's evaluation. The
        edges to rank are known edges too.

    Raises:
      UserError: files are missing, are not files of edges, or have an edge that does not exist in the model.
    """
    config, relations = run.config, run.relations
    partitions = config.evaluation_data
    if edges in partitions:
        table = EdgeDataset.open(partitions[edges], relations, f"validation_data.{edges}").table
    else:
        try:
            table = edge_table(edges, relations)
        except DataError as error:
            names = ", ".join(partitions) or "none"
            raise UserError(f"--ranks {edges}: not a partition of the run ({names}), and not files: {error}") from error
    if known is not None:
        return RankedEdges(table, KnownEdges(relations, [table], open_known_edges(known, relations)))
    if not config.metrics.filtered:
        return RankedEdges(table, None)
    try:
        others = [
            EdgeDataset.open(data, relations, key_path).table
            for key_path, data in config.data_sets().items()
            if data != partitions.get(edges)
        ]
        others += open_known_edges(config.metrics.known_edges, relations)
    except UserError as error:
        raise UserError(
            f"{error}. Filtered ranks ignore the edges of the run's train_data, validation_data and "
            "metrics.known_edges. Give other files of known edges with --known"
        ) from error
    return RankedEdges(table, KnownEdges(relations, [table], others))


@dataclass(frozen=True)
class _Block(Batch):
    """A batch of edges.

    Attributes:
      order: position in the file's order of each edge of the batch, [batch], int64.
      edges: the edges, sorted by segment.
    """

    order: torch.Tensor
    edges: EdgeBatch


class _Ranks(NamedTuple):
    """Ranks of consecutive edges.

    Attributes:
      lhs, rel, rhs: the edges, [edges], int64.
      ranks: ranks by kind (filtered, raw), [edges, 2], float64, heads first.
    """

    lhs: NDArray[np.int64]
    rel: NDArray[np.int64]
    rhs: NDArray[np.int64]
    ranks: dict[str, NDArray[np.float64]]


def _ranks(run: SavedRun, model: SavedModel, edges: RankedEdges) -> Iterator[_Ranks]:
    """Yield the ranks of all edges in the order of the files."""
    builder = BatchBuilder(run.relations, edges.known)

    def make_block(columns: Columns, weights: torch.Tensor) -> _Block:
        return _Block(builder.order(columns["rel"]), builder(columns, weights))

    reader = BatchReader(edges.table, make_block, global_batch_size=_BATCH_SIZE, lanes=1)
    candidates = Candidates(run.config.metrics, run.config.model, run.config.runtime.seed)
    with contextlib.closing(reader.evaluate()) as blocks:
        for positioned in blocks:
            batch = positioned.batch.edges
            outputs = rank_edges(model.scorer, batch, model.look_up, candidates)
            # The inverse permutation restores the order of the file. Padding comes last.
            real = positioned.batch.order.argsort()[: int((batch.weights > 0).sum())]
            lhs, rel, rhs = (each[real].numpy() for each in (batch.lhs, batch.rel, batch.rhs))
            kinds = [FILTERED, RAW] if edges.known is not None else [RAW]
            yield _Ranks(lhs, rel, rhs, {kind: outputs[f"{kind}_ranks"][real].numpy() for kind in kinds})


def write_ranks(run: SavedRun, model: SavedModel, edges: RankedEdges, path: Path) -> str:
    """Write a row for each edge to a Parquet file, in the order of the edges, and return a table of mean ranks.

    Columns: those of EdgeFile, filtered_head_rank, filtered_tail_rank, raw_head_rank and raw_tail_rank.
    """
    kinds = [FILTERED, RAW] if edges.known is not None else [RAW]
    names = [f"{kind}_{side}_rank" for kind in kinds for side in _SIDES]
    summary = _Summary(run, kinds)
    with (
        EdgeFile(path, run, [pa.field(name, pa.float64(), nullable=False) for name in names]) as file,
        Progress("ranking", edges.table.num_rows, "edges") as progress,
    ):
        for block in _ranks(run, model, edges):
            ranks = [pa.array(block.ranks[kind][:, side]) for kind in kinds for side in range(len(_SIDES))]
            file.write(block.lhs, block.rel, block.rhs, ranks)
            summary.add(block)
            progress.add(len(block.rel))
    return summary.table()


class _Summary:
    """Means of the ranks of heads, of tails, and of both."""

    def __init__(self, run: SavedRun, kinds: Sequence[str]) -> None:
        self._kinds = kinds
        hits_at = run.config.metrics.hits_at
        columns = {"heads": slice(0, 1), "tails": slice(1, 2), "both": slice(0, 2)}
        self._metrics = {
            name: (
                chosen,
                RankingMetrics(
                    run.relations.names,
                    torch.device("cpu"),
                    hits_at=hits_at,
                    filtered=FILTERED in kinds,
                    per_relation=False,
                ),
            )
            for name, chosen in columns.items()
        }
        self._columns = ["mrr", *(f"hits@{k}" for k in hits_at), "mean_rank"]

    def add(self, block: _Ranks) -> None:
        """Add the ranks of edges."""
        count = len(block.rel)
        for chosen, metrics in self._metrics.values():
            outputs: dict[str, Any] = {
                f"{kind}_ranks": torch.from_numpy(ranks[:, chosen]) for kind, ranks in block.ranks.items()
            }
            # The AUC, which needs negatives, is not reported.
            outputs |= {"negatives_beaten": torch.zeros(count, 1), "weights": torch.ones(count)}
            metrics.update(outputs | {"relations": torch.from_numpy(block.rel)})

    def table(self) -> str:
        """Return the means as a table."""
        rows = []
        for name, (_, metrics) in self._metrics.items():
            values = metrics.compute()
            for kind in self._kinds:
                cells = [values[f"{kind}/{column}"] for column in self._columns]
                rows.append([name, kind, *(f"{cell:.4f}" for cell in cells if cell is not None)])
        alignment = ("left", "left", *("right" for _ in self._columns))
        return tabulate(rows, headers=["ranks of", "", *self._columns], disable_numparse=True, colalign=alignment)
