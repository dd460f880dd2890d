"""Warns of what spoils a model: duplicates, rare labels, times out of order, and too few rows."""

import logging
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import UserError
from common.process.memory import format_bytes
from projects.home.recap.tools.prepare.database import only_row, scan
from projects.home.recap.tools.prepare.defaults import MIN_TRAIN_ROWS
from projects.home.recap.tools.prepare.input_files import InputFiles
from projects.home.recap.tools.prepare.split_files import HASH, Split

if TYPE_CHECKING:
    import duckdb

logger = logging.getLogger(__name__)

_SPACE_PER_BYTE = 2
"""Disk space per byte of CSV: at first for rows of text and of their types, then for sorted rows and the output."""

_RARE = 0.001
_FEW_ROWS = 1000


def warn_of_little_space(inputs: InputFiles, folder: Path) -> None:
    """Log a warning if a directory may have too little disk space for the temporary files and the output.

    Args:
      inputs: the user's files.
      folder: directory of the temporary files.
    """
    size = inputs.num_bytes
    free = shutil.disk_usage(folder).free
    if free < _SPACE_PER_BYTE * size:
        logger.warning(
            "%s has %s of free disk space, which may not suffice: the input has %s. Allow for %d times its size, "
            "more if it is compressed",
            folder,
            format_bytes(free),
            format_bytes(size),
            _SPACE_PER_BYTE,
        )


def label_warnings(splits: Mapping[str, Split]) -> list[str]:
    """Return warnings about labels that are rare, or always the same in a split."""
    warnings = []
    num_rows = sum(split.num_rows for split in splits.values())
    for label in splits["train"].positives:
        positives = {name: split.positives[label] for name, split in splits.items()}
        rate = sum(positives.values()) / num_rows
        if 0 < rate < _RARE:
            warnings.append(
                f"{label}: only {sum(positives.values()):,} of {num_rows:,} rows are 1 ({rate:.4%}). Below 0.1%, a "
                "model needs very many rows"
            )
        for value in (0, 1):
            constant = [name for name in splits if positives[name] == value * splits[name].num_rows]
            if constant:
                warnings.append(f"{label}: all rows of {', '.join(constant)} are {value}, so that there is no AUC")
    return warnings


def duplicate_warnings(connection: "duckdb.DuckDBPyConnection", hashes: Path) -> list[str]:
    """Return a warning if rows occur more than once.

    Args:
      connection: the database.
      hashes: file with the hash of each row.
    """
    copies, distinct = only_row(
        connection,
        f"SELECT coalesce(sum(n - 1), 0), count(*) FROM "
        f"(SELECT count(*) AS n FROM {scan([hashes])} GROUP BY {HASH} HAVING count(*) > 1)",
    )
    if copies == 0:
        return []
    return [
        f"{distinct:,} distinct rows occur more than once; {copies:,} rows are copies. Remove them if they are errors"
    ]


def time_warnings(
    connection: "duckdb.DuckDBPyConnection", splits: Mapping[str, Split], columns: Sequence[str], times: Sequence[str]
) -> list[str]:
    """Return a warning if training has rows that are later than the first of validation.

    Args:
      connection: the database.
      splits: the splits, which are not divided by time.
      columns: names of all their columns, in order.
      times: names of the columns with timestamps.
    """
    if not times:
        return []
    names = [f"v{index}" for index in range(len(columns))]
    late = []
    for time in times:
        name = names[list(columns).index(time)]
        (is_later,) = only_row(
            connection,
            f"SELECT (SELECT max({name}) FROM {scan([splits['train'].file], names)}) > "
            f"(SELECT min({name}) FROM {scan([splits['validation'].file], names)})",
        )
        if is_later:
            late.append(time)
    if not late:
        return []
    return [
        f"training has rows that are later than rows of validation, by {', '.join(late)}. If the model is to predict "
        f"the future, divide the rows by time: --time {shlex.quote(late[0])}"
    ]


def size_warnings(splits: Mapping[str, Split]) -> list[str]:
    """Return a warning if there are few rows to train on.

    Raises:
      UserError: there are less than a batch needs.
    """
    rows = splits["train"].num_rows
    if rows < MIN_TRAIN_ROWS:
        raise UserError(f"only {rows:,} rows to train on, but at least {MIN_TRAIN_ROWS} are needed. Prepare more rows")
    return [f"only {rows:,} rows to train on: the metrics will vary much"] if rows < _FEW_ROWS else []
