"""A table to split, for tests of what is written."""

import datetime
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from projects.home.recap.tools.prepare.database import open_database
from projects.home.recap.tools.prepare.labels import define_labels
from projects.home.recap.tools.prepare.split_files import Scratch, Split
from projects.home.recap.tools.prepare.splits import SplitRule, write_splits
from tests.support.staged import staged

SHARES = (0.8, 0.1, 0.1)
DAY = datetime.datetime(2026, 1, 1)


def table_of(num_rows: int, num_times: int | None = None, seed: int = 0) -> dict[str, Any]:
    """A table with equal rows, nulls, and times that are out of order and repeat."""
    chance = random.Random(seed)
    seconds = [chance.randrange(num_times or 10 * num_rows) for _ in range(num_rows)]
    return {
        "user": [chance.choice([None, *"abcdefghijklmnopqrstuvwxyz"]) for _ in range(num_rows)],
        "number": [chance.choice([None, 0.5, 1.0, 2.0]) for _ in range(num_rows)],
        "time": pa.array([DAY + datetime.timedelta(seconds=second) for second in seconds], pa.timestamp("us")),
        "list": pa.array(
            [chance.choice([None, [], ["x"], ["x", None]]) for _ in range(num_rows)], pa.list_(pa.string())
        ),
        "clicked": [chance.randrange(2) for _ in range(num_rows)],
        "bought": [chance.choice([True, False]) for _ in range(num_rows)],
    }


def split(
    folder: Path,
    table: dict[str, Any],
    by: str = "row",
    column: str | None = None,
    shares: tuple[float, float, float] = SHARES,
    threads: int = 1,
    files: int = 1,
) -> dict[str, Split]:
    """Split a table and return the splits by name."""
    folder.mkdir()
    ingested = staged(folder, table, files=files)
    columns = {each.name: each for each in ingested.columns}
    labels = define_labels(ingested, ["clicked", "bought"], [])
    required = (columns["time"],) if by == "time" else ()
    rule = SplitRule(by, None if column is None else columns[column], shares, required)
    with open_database(folder / "temporary", threads) as connection:
        scratch = Scratch(folder / "hashes.parquet", folder / "sample.parquet")
        return write_splits(connection, ingested, labels, rule, folder, scratch)


def written(splits: dict[str, Split]) -> dict[str, list[tuple[Any, ...]]]:
    """Return the rows of each split."""
    return {
        name: list(zip(*pq.read_table(each.file).to_pydict().values(), strict=True)) for name, each in splits.items()
    }
