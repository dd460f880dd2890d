"""Answers queries or ranks edges with the model of a checkpoint, as the command line says."""

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
    if options.out is None:
        # A bar would mix with the tables, which show the progress themselves.
        logger.info("answering %s", _counted_queries(len(queries)))
        print_predictions(run, _answers(reader, run, queries, options))
        return
    with atomic_directory(options.out) as partial:
        blocks = _answers(reader, run, queries, options)
        with Progress("answering", len(queries), "queries") as progress:
            count = write_predictions(run, _counted(blocks, progress), partial / "predictions.parquet")
    print_report(
        f"{reader.path}: {count:,} answers to {_counted_queries(len(queries))}\n{options.out / 'predictions.parquet'}\n"
    )


def _counted_queries(number: int) -> str:
    return "1 query" if number == 1 else f"{number:,} queries"


def _answers(reader: CheckpointReader, run: SavedRun, queries: Queries, options: Options) -> Iterator[Answers]:
    """Read the known edges and the model, and return an iterator over the best answers to queries."""
    known = known_answers(run, queries, options.known or ())
    return best_answers(SavedModel.read(reader, run), run.names, queries, known, options.k or _K)


def _counted(blocks: Iterator[Answers], progress: Progress) -> Iterator[Answers]:
    """Yield blocks of answers, and count those that were consumed."""
    for block in blocks:
        yield block
        progress.add(len(block.queries))
