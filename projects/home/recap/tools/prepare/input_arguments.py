"""Declares the options of the command line that state how the input is read."""

import argparse
from collections.abc import Sequence

from projects.home.recap.tools.prepare.columns import IngestOptions


def add_input_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options to a parser."""
    add = parser.add_argument_group("format of the input").add_argument
    add(
        "--null_values",
        type=_texts,
        action="extend",
        default=[],
        metavar="A,B",
        help="texts that mean a missing value, in addition to an empty field; can be repeated",
    )
    add(
        "--columns",
        type=_texts,
        metavar="A,B",
        help="names of the columns, if the first line of the CSV files has values instead of names",
    )
    add("--header", action="store_true", help="the first line of the CSV files has names, even if they are numbers")
    add(
        "--delimiter",
        type=_delimiter,
        metavar="CHARACTER",
        help="character between the fields of CSV files, such as '|' or tab (default: comma, tab or semicolon, the one "
        "that divides all rows alike)",
    )
    add(
        "--decimal",
        choices=(".", ","),
        help="decimal separator of numbers in text (default: detected for each column)",
    )
    add(
        "--date_format",
        type=_date_format,
        action="append",
        default=[],
        metavar="[COLUMN=]FORMAT",
        help="format of dates in text, as in strptime, such as signup=%%d/%%m/%%Y; without a column, of all columns "
        "whose values have it; can be repeated",
    )


def input_options(args: argparse.Namespace) -> IngestOptions:
    """Return the options that add_input_arguments() has declared."""
    return IngestOptions(
        null_values=tuple(args.null_values),
        delimiter=args.delimiter,
        names=None if args.columns is None else tuple(args.columns),
        header=args.header,
        decimal=args.decimal,
        date_formats=dict(args.date_format),
    )


def _texts(text: str) -> Sequence[str]:
    return text.split(",")


def _delimiter(text: str) -> str:
    delimiter = {"tab": "\t", "\\t": "\t"}.get(text, text)
    if len(delimiter.encode()) != 1 or delimiter in '"\r\n':
        raise argparse.ArgumentTypeError(f"{text!r} is not one ASCII character, or is a quotation mark")
    return delimiter


def _date_format(text: str) -> tuple[str, str]:
    column, equals, pattern = text.rpartition("=")
    if "%" not in pattern or (equals and not column) or "%" in column:
        raise argparse.ArgumentTypeError(f"{text!r} is not a format such as %d/%m/%Y, or COLUMN=FORMAT")
    return column, pattern
