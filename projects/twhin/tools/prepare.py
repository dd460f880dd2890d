"""Turns other graphs into edges that TwHIN reads: `python -m projects.twhin.tools.prepare KIND --out DIR ...`.

Owns the command line, and what it reports. How triples are read is in triples.py, how graphs of users in bipartite.py.
"""

import argparse
import sys
from pathlib import Path

from common.errors import UserError
from common.files.atomic_directory import atomic_directory
from common.process.program import ArgumentParser, run
from common.reader.files import matching_files
from projects.twhin.tools.bipartite import LAYOUTS, Chunks, prepare_bipartite
from projects.twhin.tools.graph_files import SPLITS, names_path
from projects.twhin.tools.ready_config import Graph, ready_config
from projects.twhin.tools.triples import prepare_triples

PROGRAM = "python -m projects.twhin.tools.prepare"


def main() -> int:
    """Runs the command line.

    Raises:
      UserError: files that can't be read, lines that are no edges, `--out` that exists or can't be written.
    """
    args = _parse_args()
    out: Path = args.out
    with atomic_directory(out) as partial:
        graph = _triples(args, partial) if args.kind == "triples" else _bipartite(args, partial)
        # A name may have any character but tabs and ends of lines.
        names = "".join(f"{relation.name}\n" for relation in graph.relations)
        names_path(partial).write_text(names, encoding="utf-8")
        (partial / "config.yaml").write_text(ready_config(out, graph), encoding="utf-8")
    sys.stdout.write(report(out, graph))
    return 0


def report(out: Path, graph: Graph) -> str:
    """What was made, and how to train on it."""
    edges = ", ".join(f"{count} {split}" for split, count in graph.num_edges.items())
    tables = ", ".join(f"{name} of num_embeddings {rows}" for name, rows in graph.tables.items())
    return (
        f"{out}: edges: {edges}\ntables: {tables}\nrelations: {len(graph.relations)} (relations.txt)\n"
        f"train with: python -m projects.twhin.main --config {out / 'config.yaml'}\n"
    )


def _triples(args: argparse.Namespace, out: Path) -> Graph:
    splits = {split: getattr(args, split) for split in SPLITS if getattr(args, split)}
    return prepare_triples(out, splits, args.entity_type)


def _bipartite(args: argparse.Namespace, out: Path) -> Graph:
    chunks = Chunks(args.validation_from, args.test_from)
    if (
        chunks.validation_from is not None
        and chunks.test_from is not None
        and chunks.validation_from >= chunks.test_from
    ):
        raise UserError(
            f"--validation_from {chunks.validation_from} is not before --test_from {chunks.test_from}; validation "
            "edges are those between the two: give a later --test_from"
        )
    paths = [path for given in args.input for path in matching_files(given).paths]
    return prepare_bipartite(out, paths, LAYOUTS[args.kind], chunks)


def _parse_args() -> argparse.Namespace:
    parser = ArgumentParser(
        prog=PROGRAM, description="Makes edges, vocabularies and a configuration of a graph (docs/graph-data.md)."
    )
    kinds = parser.add_subparsers(dest="kind", required=True)
    triples = kinds.add_parser("triples", help="lines of head, relation and tail, separated by tabs")
    for split in SPLITS:
        triples.add_argument(
            f"--{split}", type=Path, nargs="+", required=split == "train", metavar="FILE", help="plain, .gz or .zip"
        )
    triples.add_argument("--entity_type", type=_table_name, default="entity", help="name of the table (%(default)s)")
    for kind, layout in LAYOUTS.items():
        graph = kinds.add_parser(kind, help=f"columns {', '.join(layout.columns)}")
        graph.add_argument(
            "--input", nargs="+", required=True, help="Parquet, or CSV or TSV with a header, plain, .gz or .zip"
        )
        graph.add_argument("--validation_from", type=int, metavar="CHUNK", help="first time chunk of validation edges")
        graph.add_argument("--test_from", type=int, metavar="CHUNK", help="first time chunk of test edges")
    for kind_parser in kinds.choices.values():
        kind_parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="directory to make")
    return parser.parse_args()


def _table_name(text: str) -> str:
    if not text or set(text) & {"/", "."}:
        raise argparse.ArgumentTypeError(f"{text!r} can't be the name of a table; give one without '.' and '/'")
    return text


if __name__ == "__main__":
    run(main, after_interrupt="begins again")
