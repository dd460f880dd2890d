"""Answers queries or ranks edges with the model of a checkpoint, as the command line says."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

import torch

from common.checkpointing.directory import find_checkpoints
from common.checkpointing.reader import CheckpointReader
from common.files.atomic_directory import atomic_directory
from common.process.progress import Progress
from common.process.standard_streams import print_report
from projects.twhin.predict.options import Options
from projects.twhin.predict.predictions import known_answers, print_predictions, write_predictions
from projects.twhin.predict.queries import Queries, queries_of_files, queries_of_options
from projects.twhin.predict.ranks import open_edges, write_ranks
from projects.twhin.predict.saved_model import SavedModel, SavedRun
from projects.twhin.predict.top_k import Answers, best_answers

logger = logging.getLogger(__name__)

_K = 10


def predict(options: Options) -> None:
    """Do what the options say, and print the result or where it is.

    Raises:
      UserError: a name is unknown, or a file cannot be read or written.
    """
    checkpoint = find_checkpoints(options.checkpoint)[-1]
    with CheckpointReader(checkpoint) as reader, torch.inference_mode():
        run = SavedRun.open(checkpoint)
        logger.info("using %s", checkpoint)
        if options.ranks is not None:
            assert options.out is not None
            _rank(reader, run, options.ranks, options.known, options.out)
        else:
            _answer(reader, run, options)


def _rank(reader: CheckpointReader, run: SavedRun, ranks: str, known: tuple[str, ...] | None, out: Path) -> None:
    with atomic_directory(out) as partial:
        edges = open_edges(run, ranks, known)
        model = SavedModel.read(reader, run)
        summary = write_ranks(run, model, edges, partial / "ranks.parquet")
    print_report(
        f"{reader.path}: ranks of {edges.table.num_rows:,} edges of {edges.table.inputs}\n{summary}\n"
        f"{out / 'ranks.parquet'}\n"
    )


def _answer(reader: CheckpointReader, run: SavedRun, options: Options) -> None:
    if options.queries:
        queries = queries_of_files(run, options.queries)
    else:
        queries = queries_of_options(run, options.heads, options.relations, options.tails)
    k = options.k or _K
    if options.out is None:
        with _answers(reader, run, queries, options.known or (), k) as blocks:
            print_predictions(run, blocks)
        return
    with atomic_directory(options.out) as partial, _answers(reader, run, queries, options.known or (), k) as blocks:
        count = write_predictions(run, blocks, partial / "predictions.parquet")
    print_report(
        f"{reader.path}: {count:,} answers to {len(queries):,} queries\n{options.out / 'predictions.parquet'}\n"
    )


@contextlib.contextmanager
def _answers(
    reader: CheckpointReader, run: SavedRun, queries: Queries, known: tuple[str, ...], k: int
) -> Iterator[Iterator[Answers]]:
    """Yield the best answers to queries, and show progress while they are consumed."""
    known_by_side = known_answers(run, queries, known)
    model = SavedModel.read(reader, run)
    with Progress("answering", len(queries), "queries") as progress:

        def blocks() -> Iterator[Answers]:
            for block in best_answers(model, run.names, queries, known_by_side, k):
                yield block
                progress.add(len(block.queries))

        yield blocks()
