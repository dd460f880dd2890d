"""Prints answers to queries, or writes them to a Parquet file."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from tabulate import tabulate

from common.process.standard_streams import print_report
from projects.twhin.data.known_edges import KnownAnswers, collect_answers, open_known_edges
from projects.twhin.data.relations import SIDES, Side
from projects.twhin.predict.edge_file import EdgeFile
from projects.twhin.predict.queries import Queries
from projects.twhin.predict.saved_model import SavedRun
from projects.twhin.predict.top_k import Answers


def known_answers(run: SavedRun, queries: Queries, inputs: Sequence[str]) -> dict[Side, KnownAnswers]:
    """Return the answers to queries in files of known edges, by the side that they are on; empty without files.

    Args:
      run: the model.
      queries: the queries.
      inputs: glob pattern, file or directory of each table of known edges.

    Raises:
      DataError: no file matches, a file is not a table of edges, or an edge's relation or entity does not exist.
    """
    if not inputs:
        return {}
    tables = open_known_edges(inputs, run.relations)
    answers = {side: KnownAnswers(run.relations, side) for side in SIDES}
    for side, other in zip(SIDES, SIDES[::-1], strict=True):
        positions = queries.positions(side)
        answers[side].add_queries({"rel": queries.relations[positions], other: queries.entities[positions]})
    collect_answers(list(answers.values()), tables)
    return answers


def print_predictions(run: SavedRun, blocks: Iterable[Answers]) -> None:
    """Print a table of the best answers to each query."""
    for block in blocks:
        for row in range(len(block.queries)):
            print_report(_table(run, block, row))


def _table(run: SavedRun, block: Answers, row: int) -> str:
    query = block.queries[slice(row, row + 1)]
    relation = int(query.relations[0])
    side: Side = "rhs" if query.finds_tail[0] else "lhs"
    other: Side = "lhs" if side == "rhs" else "rhs"
    given = run.names.take(other, query.relations, query.entities)[0]
    is_answer = block.entities[row] >= 0
    entities = block.entities[row][is_answer]
    answers = run.names.take(side, np.full(len(entities), relation), entities).to_pylist()
    rows = [
        [rank, str(answer), f"{score:.6g}"]
        for rank, (answer, score) in enumerate(zip(answers, block.scores[row][is_answer].tolist(), strict=True), 1)
    ]
    table = run.names.table(side, relation)
    head, tail = (given, "?") if side == "rhs" else ("?", given)
    return (
        f"({head}, {run.relations.names[relation]}, {tail}): best of the {run.names.count(table):,} entities of the "
        f"table {table}\n"
        + tabulate(
            rows, headers=["rank", "entity", "score"], disable_numparse=True, colalign=("right", "left", "right")
        )
        + "\n\n"
    )


def write_predictions(run: SavedRun, blocks: Iterable[Answers], path: Path) -> int:
    """Write a row for each answer to a Parquet file, and return their number.

    Columns: those of EdgeFile, the number of the query, what it finds (head or tail), the rank of the answer among the
    answers, and its score.
    """
    additional = [
        pa.field("query", pa.int64(), nullable=False),
        pa.field("predicted", pa.string(), nullable=False),
        pa.field("rank", pa.int64(), nullable=False),
        pa.field("score", pa.float64(), nullable=False),
    ]
    num_queries = 0
    with EdgeFile(path, run, additional) as file:
        for block in blocks:
            query, rank = np.nonzero(block.entities >= 0)
            finds_tail, given = block.queries.finds_tail[query], block.queries.entities[query]
            answer = block.entities[query, rank]
            file.write(
                np.where(finds_tail, given, answer),
                block.queries.relations[query],
                np.where(finds_tail, answer, given),
                [
                    pa.array(query + num_queries),
                    pa.array(np.where(finds_tail, "tail", "head")),
                    pa.array(rank + 1),
                    pa.array(block.scores[query, rank]),
                ],
            )
            num_queries += len(block.queries)
        return file.num_rows
