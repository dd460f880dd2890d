"""Declares the command-line options that search and build_index share."""

import argparse
from typing import get_args

from projects.twhin.model.config import ComparatorName


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --embeddings, --table and --comparator."""
    parser.add_argument(
        "--embeddings", required=True, metavar="PATH", help="file of embeddings, or directory of an export"
    )
    parser.add_argument("--table", help="table of the entities, if --embeddings is a directory with several tables")
    parser.add_argument(
        "--comparator",
        choices=get_args(ComparatorName),
        default="cos",
        help="cosine, dot product, or negative Euclidean distance (default: %(default)s)",
    )
