"""Looks into Parquet files.

python -m common.reader inspect data/recap/train
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import tqdm

from common.program import ArgumentParser, run
from common.reader.files import Files, matching_files
from common.reader.inspection import inspect
from common.reader.inspection_report import report


def main() -> int:
    """Prints a report on each set of files.

    Returns:
      the exit status: 0, or 1 where a run would refuse something.
    """
    parser = ArgumentParser(prog="python -m common.reader", description="Looks into Parquet files.")
    commands = parser.add_subparsers(required=True, metavar="inspect")
    command = commands.add_parser(
        "inspect",
        help="sizes, schema, statistics, label rates, and what a run would refuse",
        description="Reads all columns of numbers, and prints sizes, schema, statistics, label rates, and what a run "
        "would refuse. Ends with status 1 where it would refuse something, with 2 where no file matches.",
    )
    command.add_argument(
        "files",
        nargs="+",
        metavar="FILES",
        help="a glob pattern, a directory, or a file; files that are given one by one make one set",
    )
    sets = _sets(parser.parse_args().files)
    refused = 0
    # Some terminals (docker, script) don't tell their size; in none of it there would be no bar.
    silent = not sys.stderr.isatty()
    with tqdm.tqdm(unit=" rows", unit_scale=True, ncols=80, nrows=20, disable=silent, leave=False) as progress:
        for index, files in enumerate(sets):
            inspection = inspect(files, progress.update)
            refused += inspection.refused.count
            with tqdm.tqdm.external_write_mode():
                sys.stdout.write(("\n" if index else "") + report(inspection))
    return 1 if refused else 0


def _sets(given: Sequence[str]) -> list[Files]:
    """A set of each pattern and directory, and one of all files, which a shell may have made of a pattern."""
    found = [matching_files(name) for name in given]
    single = [files for files in found if files.paths == (Path(files.description).expanduser(),)]
    sets = [files for files in found if files not in single]
    if single:
        more = f" and {len(single) - 1:,} more" if len(single) > 1 else ""
        sets.insert(0, Files(tuple(files.paths[0] for files in single), single[0].description + more))
    return sets


if __name__ == "__main__":
    run(main)
