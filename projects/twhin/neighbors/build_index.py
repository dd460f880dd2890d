"""Builds an index: `python -m projects.twhin.neighbors.build_index --embeddings FILE --out DIR`."""

if __name__ == "__main__" and not __package__:  # started by its path
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[3])

import logging
import time

from common.process.logging import setup_logging
from common.process.paths import user_path
from common.process.program import ArgumentParser, run
from common.process.standard_streams import print_report
from projects.twhin.neighbors.arguments import add_source_arguments

logger = logging.getLogger(__name__)


def main() -> int:
    """Run the command line, report the measured recall, and return the exit status.

    Raises:
      UserError: an option is invalid, a file cannot be read or written, or faiss is not installed.
    """
    setup_logging(rank=0)
    parser = ArgumentParser(
        prog="python -m projects.twhin.neighbors.build_index",
        description="Builds an index that makes searches among exported embeddings faster and approximate.",
    )
    add_source_arguments(parser)
    parser.add_argument(
        "--out", required=True, type=user_path, metavar="DIR", help="directory to create; must be empty if it exists"
    )
    args = parser.parse_args()
    from common.files.atomic_directory import atomic_directory  # the other imports take seconds
    from common.process.optional_packages import require_packages

    require_packages("an index", ["faiss"])
    from projects.twhin.neighbors.index import build_index
    from projects.twhin.neighbors.index_files import save_index
    from projects.twhin.neighbors.loaded import load_embeddings
    from projects.twhin.neighbors.sources import open_source

    start = time.monotonic()
    with atomic_directory(args.out) as partial:
        table = load_embeddings(open_source(args.embeddings, args.table))
        index = build_index(table, args.comparator)
        save_index(index, partial)
    efforts = [
        f"--recall {recall}: found {effort.recall:.1%} of the ten nearest neighbors of a sample of the entities"
        + ("" if effort.recall >= float(recall) else ". The index cannot reach this recall")
        for recall, effort in index.facts.efforts.items()
    ]
    table_option = "" if args.table is None else f" --table {args.table}"
    print_report(
        f"built an index of {index.facts.num_rows:,} embeddings of {table.path} in {time.monotonic() - start:.0f} s\n"
        + "\n".join(efforts)
        + f"\nsearch with it: python -m projects.twhin.neighbors --embeddings {args.embeddings}{table_option} "
        f"--comparator {args.comparator} --index {args.out} --entity NAME\n"
    )
    return 0


if __name__ == "__main__":
    run(main, after_interrupt="starts over", one_process=True)
