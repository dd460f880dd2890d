"""Finds the nearest neighbors of entities: `python -m projects.twhin.neighbors --embeddings FILE --entity NAME`."""

if __name__ == "__main__" and not __package__:  # started by its path
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[3])

from typing import get_args

from common.process.arguments import at_least_1, utf8_text
from common.process.program import ArgumentParser, run
from projects.twhin.model.config import ComparatorName


def main() -> int:
    """Run the command line, print a table for each entity, and return the exit status.

    Raises:
      UserError: an option is invalid, or a file cannot be read.
    """
    parser = ArgumentParser(
        prog="python -m projects.twhin.neighbors",
        description="Finds the exact nearest neighbors among exported embeddings.",
    )
    parser.add_argument(
        "--embeddings", required=True, metavar="PATH", help="file of embeddings, or directory of an export"
    )
    parser.add_argument("--table", help="table of the entities, if --embeddings is a directory with several tables")
    parser.add_argument(
        "--entity",
        required=True,
        action="append",
        type=utf8_text,
        metavar="NAME",
        help="entity whose neighbors to find; can be repeated",
    )
    parser.add_argument(
        "--k", type=at_least_1, default=10, help="number of neighbors per entity (default: %(default)s)"
    )
    parser.add_argument(
        "--comparator",
        choices=get_args(ComparatorName),
        default="cos",
        help="cosine, dot product, or negative Euclidean distance (default: %(default)s)",
    )
    parser.add_argument(
        "--of",
        metavar="TABLE",
        help="table of --embeddings, or file, to search instead; for example, to find the tweets nearest to a user",
    )
    args = parser.parse_args()
    from projects.twhin.neighbors.search import search  # imports torch, which takes seconds

    search(args.embeddings, args.table, args.entity, args.k, args.comparator, args.of)
    return 0


if __name__ == "__main__":
    run(main, after_interrupt="starts over", one_process=True)
