"""Predicts with a trained TwHIN: `python -m projects.twhin.predict --checkpoint SAVE_DIR --head NAME --relation NAME`.

Finds the tails of heads and the heads of tails, or writes the rank of every edge of a partition.
"""

if __name__ == "__main__" and not __package__:  # started by its path
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[3])

import functools

from common.process.arguments import at_least_1, utf8_text
from common.process.logging import setup_logging
from common.process.paths import user_path
from common.process.program import ArgumentParser, run
from projects.twhin.predict.options import Options


def main() -> int:
    """Run the command line and return the exit status.

    Raises:
      UserError: an option is invalid, a name is unknown, or a file cannot be read or written.
    """
    setup_logging(rank=0)
    options = _parse_args()
    from projects.twhin.predict.program import predict  # imports torch, which takes seconds

    predict(options)
    return 0


def _parse_args() -> Options:
    parser = ArgumentParser(
        prog="python -m projects.twhin.predict",
        description="Finds the tails of heads and the heads of tails, or writes the ranks of edges.",
    )
    parser.add_argument(
        "--checkpoint",
        required=True,
        type=user_path,
        metavar="DIR",
        help=".../checkpoints/<step>, or the save_dir of a run, whose newest complete checkpoint is used",
    )
    add_names = functools.partial(parser.add_argument, action="append", default=[], type=utf8_text, metavar="NAME")
    add_names("--head", help="head whose tails to find; can be repeated")
    add_names("--tail", help="tail whose heads to find; can be repeated")
    add_names("--relation", help="relation of --head and --tail; can be repeated, to combine each with each")
    parser.add_argument(
        "--queries",
        nargs="+",
        default=[],
        type=utf8_text,
        metavar="FILES",
        help="files of queries: Parquet files with the columns head, relation and tail, in which the entity to find is "
        "null, or text files with lines of head, relation and tail, separated by tabs, in which it is ?",
    )
    parser.add_argument(
        "--ranks",
        type=utf8_text,
        metavar="PARTITION|FILES",
        help="write the rank of each edge of an evaluation set of the run, such as validation, or of files of edges",
    )
    parser.add_argument(
        "--known",
        nargs="+",
        type=utf8_text,
        metavar="FILES",
        help="files of known edges, which are not predicted. With --ranks, they replace the known edges of the run's "
        "evaluation",
    )
    parser.add_argument("--k", type=at_least_1, help="number of answers per query (default: 10)")
    parser.add_argument(
        "--out",
        type=user_path,
        metavar="DIR",
        help="directory to create for predictions.parquet or ranks.parquet; must be empty if it exists. Without it, "
        "predictions are printed",
    )
    args = parser.parse_args()
    return Options(
        checkpoint=args.checkpoint,
        heads=tuple(args.head),
        tails=tuple(args.tail),
        relations=tuple(args.relation),
        queries=tuple(args.queries),
        ranks=args.ranks,
        known=None if args.known is None else tuple(args.known),
        k=args.k,
        out=args.out,
    )


if __name__ == "__main__":
    run(main, after_interrupt="starts over", one_process=True)
