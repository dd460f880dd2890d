"""Generates a small table of clicks as users have them: strings, nulls, times, a list, a leak, a constant and an id."""

import csv
import gzip
import io
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Table = dict[str, list[Any]]


def click_table(num_rows: int, seed: int = 0) -> Table:
    """Return the columns by name. Times ascend; `leak` is 1 exactly where `clicked` is."""
    chance = random.Random(seed)
    users = [chance.randrange(40) for _ in range(num_rows)]
    prices = [round(chance.lognormvariate(0, 1), 2) for _ in range(num_rows)]
    clicked = [int(chance.random() < (0.6 if user % 3 == 0 else 0.2)) for user in users]
    return {
        "when": [f"2026-01-{1 + row * 20 // num_rows:02} 12:{row % 60:02}:00" for row in range(num_rows)],
        "user_id": [f"u{user}" for user in users],
        "price": [None if chance.random() < 0.1 else price for price in prices],
        "color": [chance.choice(["red", "green", "blue", None]) for _ in range(num_rows)],
        "constant": ["x"] * num_rows,
        "row_id": [f"r{row}" for row in range(num_rows)],
        "leak": clicked,
        "stars": [chance.randrange(1, 6) for _ in range(num_rows)],
        "clicked": clicked,
    }


def write_csv(path: Path, table: Table) -> Path:
    """Write the table as CSV, compressed if the path ends with .gz, with empty fields for None."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(table)
    writer.writerows(["" if cell is None else cell for cell in row] for row in zip(*table.values(), strict=True))
    content = text.getvalue().encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def write_parquet(path: Path, table: Table) -> Path:
    """Write the table as Parquet, with timestamps."""
    columns = {name: pa.array(values) for name, values in table.items()}
    columns["when"] = columns["when"].cast(pa.timestamp("us"))
    pq.write_table(pa.table(columns), path)
    return path
