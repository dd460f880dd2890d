"""Joins embeddings into a Heavy Ranker's table: `python -m projects.home.recap.tools.join_embeddings`."""

if __name__ == "__main__" and not __package__:  # started by its path
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[5])

import argparse
import sys

from common.process.logging import setup_logging
from common.process.paths import user_path
from common.process.program import ArgumentParser, run
from common.process.standard_streams import print_report
from projects.home.recap.data.parquet import EMBEDDINGS


def main() -> int:
    """Run the command line: join the columns, print the report, and return the exit status 0."""
    setup_logging(rank=0)
    parser = ArgumentParser(
        prog="python -m projects.home.recap.tools.join_embeddings",
        description="Joins embeddings into a Heavy Ranker's table by id (docs/embeddings.md).",
    )
    parser.add_argument(
        "--data",
        required=True,
        type=user_path,
        metavar="DIR",
        help="directory of the table: schema.json and Parquet files at any depth",
    )
    parser.add_argument(
        "--out", required=True, type=user_path, metavar="DIR", help="directory to create; must be empty if it exists"
    )
    for column in EMBEDDINGS:
        parser.add_argument(
            f"--{column}",
            type=_source,
            metavar="ID_COLUMN=FILE",
            help="fill this column with the embeddings in FILE, looked up by the ids in ID_COLUMN",
        )
    args = parser.parse_args()
    given = {column: source for column in EMBEDDINGS if (source := getattr(args, column)) is not None}
    if not given:
        parser.error(f"nothing to join. Give at least one of {', '.join(f'--{column}' for column in EMBEDDINGS)}")
    from projects.home.recap.tools.join_embeddings.join import EmbeddingSource, join_embeddings, report  # imports torch

    sources = {column: EmbeddingSource(*source) for column, source in given.items()}
    joined = join_embeddings(args.data, args.out, sources)
    print_report(report(args.out, joined))
    return 0


def _source(text: str) -> tuple[str, str]:
    id_column, equals, path = text.partition("=")
    if not (id_column and equals and path):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not of the form ID_COLUMN=FILE, such as meta__user_id=export/user.parquet"
        )
    return id_column, path


if __name__ == "__main__":
    run(main, "starts over", one_process=True)
