"""Inspects Parquet files.

python -m common.reader inspect data/recap/train [--config config.yaml]
"""

if __name__ == "__main__" and not __package__:  # started by its path
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[2])

import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Never, Self

import tqdm

from common.features.config import Feature
from common.features.features_file import read_features
from common.process.logging import setup_logging
from common.process.paths import user_path
from common.process.program import ArgumentParser, run
from common.reader.files import Files, matching_files
from common.reader.inspect.inspection import inspect
from common.reader.inspect.report import report

logger = logging.getLogger(__name__)

_LOG_EVERY_S = 10.0


def main() -> int:
    """Print a report on each set of files.

    Returns:
      The exit status: 0, 1 if the inspection found errors, or 141 if standard output is closed.
    """
    setup_logging(rank=0)
    parser = ArgumentParser(prog="python -m common.reader", description="Inspect Parquet files.")
    commands = parser.add_subparsers(required=True, metavar="inspect")
    command = commands.add_parser(
        "inspect",
        help="print sizes, schema, statistics, label rates, and errors that would stop a run",
        description="Read all numeric columns and print sizes, schema, statistics, label rates, and errors that "
        "would stop a run. With a configuration, read the columns of its features instead, and print missing and "
        "unknown values and collisions of hashes. Exit with status 1 if there are errors, and with 2 if no file "
        "matches.",
    )
    command.add_argument(
        "files",
        nargs="+",
        metavar="FILES",
        help="a glob pattern, a directory, or a file; all files given by name are reported as one set",
    )
    command.add_argument(
        "--config", type=user_path, metavar="YAML", help="configuration with the key features, to report on these"
    )
    arguments = parser.parse_args()
    features = None if arguments.config is None else read_features(arguments.config)
    sets = _sets(arguments.files)
    num_errors = 0
    with _Progress() as progress:
        for index, files in enumerate(sets):
            text, errors = _report(files, features, progress.update)
            num_errors += errors
            try:
                with tqdm.tqdm.external_write_mode():
                    sys.stdout.write(("\n" if index else "") + text)
                    sys.stdout.flush()
            except BrokenPipeError:
                # The interpreter flushes the rest of the buffer at exit, which would fail again.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                return 128 + signal.SIGPIPE
    return 1 if num_errors else 0


def _report(files: Files, features: Mapping[str, Feature] | None, progress: Callable[[int], object]) -> tuple[str, int]:
    """Return the report on a set of files, or on its features, and the number of errors."""
    if features is None:
        inspection = inspect(files, progress)
        return report(inspection), inspection.errors.count
    # These modules import torch, which takes seconds.
    from common.reader.inspect.feature_inspection import inspect_features
    from common.reader.inspect.feature_report import feature_report

    of_features = inspect_features(files, features, progress)
    return feature_report(of_features), of_features.errors.count


class _Progress:
    """Shows the number of rows read and their rate: a bar on a terminal, log lines elsewhere."""

    def __init__(self) -> None:
        self._start = self._logged = time.monotonic()
        self._rows = 0
        # Some terminals (docker, script) report a size of 0, which would hide the bar.
        self._bar: tqdm.tqdm[Never] | None = None
        if sys.stderr.isatty():
            self._bar = tqdm.tqdm(unit=" rows", unit_scale=True, ncols=80, nrows=20, leave=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, rows: int) -> None:
        """Add `rows` to the number of rows read."""
        self._rows += rows
        if self._bar is not None:
            self._bar.update(rows)
            return
        now = time.monotonic()
        if now - self._logged >= _LOG_EVERY_S:
            self._logged = now
            logger.info("%s rows read, %s rows/s", f"{self._rows:,}", f"{self._rows / (now - self._start):,.0f}")


def _sets(given: Sequence[str]) -> list[Files]:
    """Return one set for each pattern and directory, and one set for all single files.

    Single files form one set because a shell may have expanded a pattern to them.
    """
    found = [matching_files(name) for name in given]
    single = [files for files in found if files.paths == (user_path(files.description),)]
    sets = [files for files in found if files not in single]
    if single:
        more = f" and {len(single) - 1:,} more" if len(single) > 1 else ""
        sets.insert(0, Files(tuple(files.paths[0] for files in single), single[0].description + more))
    return sets


if __name__ == "__main__":
    run(main, "reads all files from the beginning", one_process=True)
