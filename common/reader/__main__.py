"""Looks into Parquet files.

python -m common.reader inspect data/recap/train
"""

import logging
import os
import signal
import sys
import time
from collections.abc import Sequence
from typing import Never, Self

import tqdm

from common.process.logging import setup_logging
from common.process.paths import user_path
from common.process.program import ArgumentParser, run
from common.reader.files import Files, matching_files
from common.reader.inspect.inspection import inspect
from common.reader.inspect.report import report

logger = logging.getLogger(__name__)

_LOG_EVERY_S = 10.0


def main() -> int:
    """Prints a report on each set of files.

    Returns:
      the exit status: 0, or 1 where a run would refuse something; 141 where nobody reads the reports any more.
    """
    setup_logging(rank=0)
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
    with _Progress() as progress:
        for index, files in enumerate(sets):
            inspection = inspect(files, progress.update)
            refused += inspection.refused.count
            try:
                with tqdm.tqdm.external_write_mode():
                    sys.stdout.write(("\n" if index else "") + report(inspection))
                    sys.stdout.flush()
            except BrokenPipeError:
                # What is left in the buffer would be written at the end, and fail again.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                return 128 + signal.SIGPIPE
    return 1 if refused else 0


class _Progress:
    """Rows and their rate: a bar on a terminal, lines in the log elsewhere."""

    def __init__(self) -> None:
        self._start = self._logged = time.monotonic()
        self._rows = 0
        # Some terminals (docker, script) don't tell their size; in none of it there would be no bar.
        self._bar: tqdm.tqdm[Never] | None = None
        if sys.stderr.isatty():
            self._bar = tqdm.tqdm(unit=" rows", unit_scale=True, ncols=80, nrows=20, leave=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, rows: int) -> None:
        """Shows that so many more were read."""
        self._rows += rows
        if self._bar is not None:
            self._bar.update(rows)
            return
        now = time.monotonic()
        if now - self._logged >= _LOG_EVERY_S:
            self._logged = now
            logger.info("%s rows read, %s rows/s", f"{self._rows:,}", f"{self._rows / (now - self._start):,.0f}")


def _sets(given: Sequence[str]) -> list[Files]:
    """A set of each pattern and directory, and one of all files, which a shell may have made of a pattern."""
    found = [matching_files(name) for name in given]
    single = [files for files in found if files.paths == (user_path(files.description),)]
    sets = [files for files in found if files not in single]
    if single:
        more = f" and {len(single) - 1:,} more" if len(single) > 1 else ""
        sets.insert(0, Files(tuple(files.paths[0] for files in single), single[0].description + more))
    return sets


if __name__ == "__main__":
    run(main, "looks at all files from the beginning")
