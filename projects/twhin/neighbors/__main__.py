"""Finds the nearest neighbors of entities: `python -m projects.twhin.neighbors --embeddings FILE --entity NAME`."""

if __name__ == "__main__" and not __package__:  # started by its path
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[3])

from common.process.arguments import at_least_1, utf8_text
from common.process.logging import setup_logging
from common.process.paths import user_path
from common.process.program import ArgumentParser, run
from projects.twhin.neighbors.arguments import add_source_arguments
from projects.twhin.neighbors.options import RECALLS, Options


def main() -> int:
    """Run the command line, print or write the neighbors, and return the exit status.

    Raises:
      UserError: an option is invalid, or a file cannot be read or written.
    """
    options = _parse_args()
    if options.out is not None:  # a batch may take long
        setup_logging(rank=0)
    from projects.twhin.neighbors.search import search  # imports torch, which takes seconds

    search(options)
    return 0


def _parse_args() -> Options:
    parser = ArgumentParser(
        prog="python -m projects.twhin.neighbors",
        description="Finds the nearest neighbors among exported embeddings. Without --index, they are exact.",
    )
    add_source_arguments(parser)
    parser.add_argument(
        "--entity",
        action="append",
        default=[],
        type=utf8_text,
        metavar="NAME",
        help="entity whose neighbors to find; can be repeated",
    )
    parser.add_argument(
        "--entities",
        type=user_path,
        metavar="FILE",
        help="file of entities whose neighbors to find: a text file with one name per line, or a Parquet file with the "
        "column entity",
    )
    parser.add_argument(
        "--k", type=at_least_1, default=10, help="number of neighbors per entity (default: %(default)s)"
    )
    parser.add_argument(
        "--of",
        metavar="TABLE",
        help="table of --embeddings, or file, to search instead; for example, to find the tweets nearest to a user",
    )
    parser.add_argument(
        "--index",
        type=user_path,
        metavar="DIR",
        help="index of the searched table, from python -m projects.twhin.neighbors.build_index; the search is "
        "approximate and faster",
    )
    parser.add_argument(
        "--recall",
        choices=RECALLS,
        help="share of the ten exact neighbors that a search with --index finds, as measured when the index was built "
        f"(default: {RECALLS[-1]})",
    )
    parser.add_argument(
        "--out",
        type=user_path,
        metavar="DIR",
        help="directory to create for neighbors.parquet; must be empty if it exists. Without it, neighbors are printed",
    )
    args = parser.parse_args()
    if not args.entity and args.entities is None:
        parser.error("give --entity or --entities")
    if args.recall is not None and args.index is None:
        parser.error("--recall applies to --index only; without an index, neighbors are exact")
    return Options(
        embeddings=args.embeddings,
        table=args.table,
        names=tuple(args.entity),
        entities=args.entities,
        k=args.k,
        comparator=args.comparator,
        of=args.of,
        index=args.index,
        recall=args.recall or RECALLS[-1],
        out=args.out,
    )


if __name__ == "__main__":
    run(main, after_interrupt="starts over", one_process=True)
