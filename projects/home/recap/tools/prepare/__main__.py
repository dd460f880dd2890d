"""Turns a CSV or Parquet table into a directory that trains at once: `python -m projects.home.recap.tools.prepare`."""

if __name__ == "__main__" and not __package__:  # started by its path
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[5])

import argparse
import os
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from common.process.arguments import at_least_1
from common.process.logging import setup_logging
from common.process.paths import user_path
from common.process.program import ArgumentParser, run
from common.process.standard_streams import print_report
from projects.home.recap.tools.prepare.input_arguments import add_input_arguments, input_options

if TYPE_CHECKING:
    from projects.home.recap.tools.prepare.prepare import PrepareOptions

PROGRAM = "python -m projects.home.recap.tools.prepare"


def main() -> int:
    """Run the command line: prepare the table, print the report, and return the exit status 0.

    Raises:
      UserError: an option, the input or the output is invalid.
    """
    setup_logging(rank=0)
    args = _parse_args()
    options = _options(args)
    from projects.home.recap.tools.prepare.prepare import prepare  # imports pyarrow

    print_report(prepare(options))
    return 0


def _parse_args() -> argparse.Namespace:
    parser = ArgumentParser(
        prog=PROGRAM,
        description="Turns a CSV or Parquet table into a directory that trains at once (docs/prepare.md): training, "
        "validation and test data, vocabularies, and a configuration.",
    )
    add = parser.add_argument
    add(
        "--input",
        required=True,
        nargs="+",
        type=user_path,
        metavar="FILES",
        help="CSV files (.csv, .tsv, also with .gz) or Parquet files, directories, or glob patterns",
    )
    add("--out", required=True, type=user_path, metavar="DIR", help="directory to create; must be empty if it exists")
    add("--labels", type=_names, default=[], metavar="A,B", help="columns to predict, which have 0 and 1")
    add(
        "--label",
        action="append",
        nargs=4,
        default=[],
        metavar=("NAME", "COLUMN", "OP", "VALUE"),
        help="define a label as a comparison, such as --label liked rating '>=' 4; the operators are == != > >= < <=, "
        "and the value null is a missing value; can be repeated",
    )
    add("--time", metavar="COLUMN", help="divide the rows by time: the oldest train, the newest test")
    add(
        "--group",
        metavar="COLUMN",
        help="keep rows with the same value in one split; with --time, only compute metrics within groups",
    )
    add(
        "--split",
        type=_shares,
        default=(0.8, 0.1, 0.1),
        metavar="TRAIN,VALIDATION,TEST",
        help="shares of the rows (default: 0.8,0.1,0.1)",
    )
    add("--weight", metavar="COLUMN", help="weights of the rows in the loss and in metrics")
    add("--drop_incomplete", action="store_true", help="drop rows without a label, a time or a weight")
    add(
        "--features",
        type=user_path,
        metavar="YAML",
        help="file with the key features, such as the config.yaml of an earlier table: overrides inferred features",
    )
    add("--features_only", action="store_true", help="with --features: use no other columns")
    add(
        "--kind",
        action="append",
        nargs=2,
        default=[],
        metavar=("COLUMN", "KIND"),
        help="kind of a column instead of the inferred one, such as category, number or unused; can be repeated",
    )
    add_input_arguments(parser)
    add(
        "--threads",
        type=at_least_1,
        default=len(os.sched_getaffinity(0)),
        help="number of threads (default: one per core)",
    )
    args = parser.parse_args()
    if not args.labels and not args.label:
        parser.error("there is nothing to predict. Give --labels or --label")
    if args.features_only and args.features is None:
        parser.error("--features_only needs --features")
    return args


def _options(args: argparse.Namespace) -> "PrepareOptions":
    from common.features.features_file import read_features
    from projects.home.recap.tools.prepare.labels import LabelRule
    from projects.home.recap.tools.prepare.prepare import PrepareOptions

    reading = replace(
        input_options(args),
        features={} if args.features is None else read_features(args.features),
        kinds=dict(args.kind),
    )
    return PrepareOptions(
        inputs=args.input,
        out=args.out,
        labels=args.labels,
        rules=[LabelRule(*rule) for rule in args.label],
        time=args.time,
        group=args.group,
        shares=args.split,
        drop_incomplete=args.drop_incomplete,
        weight=args.weight,
        features_only=args.features_only,
        reading=reading,
        threads=args.threads,
    )


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise argparse.ArgumentTypeError(f"{text!r} has an empty name")
    return names


def _shares(text: str) -> tuple[float, ...]:
    from fractions import Fraction

    try:
        shares = [Fraction(part) for part in text.split(",")]
    except (ValueError, ZeroDivisionError):
        shares = []
    if len(shares) != 3 or min(shares) <= 0 or sum(shares) != 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not three positive numbers that sum to 1, such as 0.8,0.1,0.1")
    return tuple(float(share) for share in shares)


if __name__ == "__main__":
    run(main, "starts over", one_process=True)
