"""Converts other graphs into edges that TwHIN reads: `python -m projects.twhin.tools.prepare KIND --out DIR ...`.

Owns the command line and its report. triples.py and bipartite.py read the two kinds of input.
"""

if __name__ == "__main__" and not __package__:  # started by its path
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[3])

import argparse
import shlex
import sys
from pathlib import Path

import pydantic

from common.errors import UserError
from common.files.atomic_directory import atomic_directory
from common.modules.embedding.config import TableName
from common.process.logging import setup_logging
from common.process.paths import user_path
from common.process.program import ArgumentParser, run
from common.process.standard_streams import print_report
from common.reader.files import matching_files, unique_files
from projects.twhin.tools.bipartite import FORMATS, SplitChunks, prepare_bipartite
from projects.twhin.tools.config_writer import PreparedGraph, write_config
from projects.twhin.tools.graph_files import SPLITS, relation_names_path
from projects.twhin.tools.text_files import FILE_FORMATS
from projects.twhin.tools.triples import prepare_triples

PROGRAM = "python -m projects.twhin.tools.prepare"


def main() -> int:
    """Run the command line and return the exit status.

    Raises:
      UserError: an input file cannot be read or has a line that is not an edge, or `--out` cannot be written or is not
        empty.
    """
    setup_logging(rank=0)
    args = _parse_args()
    out: Path = args.out
    with atomic_directory(out) as partial:
        graph = _prepare_triples(args, partial) if args.kind == "triples" else _prepare_bipartite(args, partial)
        # Names contain neither tabs nor line breaks, so one name per line is unambiguous.
        names = "".join(f"{relation.name}\n" for relation in graph.relations)
        relation_names_path(partial).write_text(names, encoding="utf-8")
        write_config(partial / "config.yaml", out, graph)
    print_report(report(out, graph))
    return 0


def report(out: Path, graph: PreparedGraph) -> str:
    """Return a summary of the prepared graph and the command that trains on it."""
    edges = ", ".join(f"{count} {split}" for split, count in graph.num_edges.items())
    tables = ", ".join(f"{name} (num_embeddings: {rows})" for name, rows in graph.tables.items())
    return (
        f"{out}: edges: {edges}\ntables: {tables}\nrelations: {len(graph.relations)} (relations.txt)\n"
        f"train with: python -m projects.twhin.main --config {shlex.quote(str(out / 'config.yaml'))}\n"
    )


def _prepare_triples(args: argparse.Namespace, out: Path) -> PreparedGraph:
    splits = {split: getattr(args, split) for split in SPLITS if getattr(args, split)}
    return prepare_triples(out, splits, args.entity_type)


def _prepare_bipartite(args: argparse.Namespace, out: Path) -> PreparedGraph:
    chunks = SplitChunks(args.validation_from, args.test_from)
    if (
        chunks.validation_from is not None
        and chunks.test_from is not None
        and chunks.validation_from >= chunks.test_from
    ):
        raise UserError(
            f"--validation_from {chunks.validation_from} is not before --test_from {chunks.test_from}. Validation "
            "edges are those between the two. Give a later --test_from"
        )
    paths = unique_files((path for pattern in args.input for path in matching_files(pattern).paths), "--input")
    return prepare_bipartite(out, paths, FORMATS[args.kind], chunks)


def _parse_args() -> argparse.Namespace:
    parser = ArgumentParser(
        prog=PROGRAM,
        description="Writes edges, vocabularies and a configuration for a graph (docs/graph-data.md).",
    )
    kinds = parser.add_subparsers(dest="kind", required=True)
    triples = kinds.add_parser("triples", help="lines of head, relation and tail, separated by tabs")
    for split in SPLITS:
        triples.add_argument(
            f"--{split}",
            type=user_path,
            nargs="+",
            required=split == "train",
            metavar="FILE",
            help=f"files of the {split} split: {FILE_FORMATS}",
        )
    triples.add_argument(
        "--entity_type", type=_table_name, default="entity", help="name of the entity table (default: %(default)s)"
    )
    for kind, file_format in FORMATS.items():
        graph = kinds.add_parser(kind, help=f"files with the columns {', '.join(file_format.columns)}")
        graph.add_argument(
            "--input",
            nargs="+",
            required=True,
            help=f"Parquet files, or CSV or TSV files with a header: {FILE_FORMATS}",
        )
        graph.add_argument("--validation_from", type=int, metavar="CHUNK", help="first time chunk of validation edges")
        graph.add_argument("--test_from", type=int, metavar="CHUNK", help="first time chunk of test edges")
    for kind_parser in kinds.choices.values():
        kind_parser.add_argument(
            "--out",
            type=user_path,
            required=True,
            metavar="DIR",
            help="directory to create; must be empty if it exists",
        )
    return parser.parse_args()


def _table_name(text: str) -> str:
    try:
        name: str = pydantic.TypeAdapter(TableName).validate_python(text)
    except pydantic.ValidationError as error:
        problem = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise argparse.ArgumentTypeError(f"{text!r} is invalid: {problem}") from error
    return name


if __name__ == "__main__":
    run(main, after_interrupt="starts over", one_process=True)
