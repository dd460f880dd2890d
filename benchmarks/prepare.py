"""Measures the speed and the memory of `python -m projects.home.recap.data.prepare` on a generated CSV file.

    python benchmarks/prepare.py --rows 10_000_000

The table has 20 columns: six numbers and four integers, two ids, six columns of text with 10 to 1,000,000 values, a
time, and a label. Prints rows per second, and the highest sum of the resident memory of all processes of the program,
which is sampled 20 times per second; memory that several processes share counts several times.
"""

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv

ROOT = Path(__file__).resolve().parent.parent
CHUNK = 500_000


def rows_of(number: int, first: int) -> pa.Table:
    """Return `number` rows of the table; equal rows for equal numbers of the first row."""
    random = np.random.default_rng(first)
    columns: dict[str, object] = {}
    for index in range(6):
        values = np.round(random.normal(size=number) * 100, 3)
        columns[f"number{index}"] = pa.array(values, mask=random.random(number) < 0.05)
    for index in range(4):
        columns[f"integer{index}"] = random.integers(0, 10 ** (index + 1), number)
    columns["user_id"] = random.integers(0, 10**6, number)
    columns["item_id"] = random.zipf(1.3, number) % 100_000
    for index in range(6):
        columns[f"text{index}"] = np.char.add("value ", random.integers(0, 10 ** (index + 1), number).astype(str))
    seconds = (first + np.arange(number)) // 4
    columns["time"] = (np.datetime64("2026-01-01") + seconds.astype("timedelta64[s]")).astype(str)
    columns["clicked"] = (random.random(number) < 0.1).astype(int)
    return pa.table(columns)


def write_table(path: Path, number: int) -> None:
    """Write a CSV file of `number` rows."""
    writer = None
    for first in range(0, number, CHUNK):
        table = rows_of(min(CHUNK, number - first), first)
        if writer is None:
            writer = pyarrow.csv.CSVWriter(
                path, table.schema, write_options=pa.csv.WriteOptions(quoting_style="needed")
            )
        writer.write_table(table)
    if writer is not None:
        writer.close()


def resident_bytes(root: int) -> int:
    """Return the resident memory of a process and of all processes that it started, directly or not."""
    parents: dict[int, int] = {}
    sizes: dict[int, int] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                lines = (folder / "status").read_text().splitlines()
            except OSError:  # the process has ended
                continue
            fields = {name: rest.split() for name, _, rest in (line.partition(":") for line in lines)}
            parents[int(folder.name)] = int(fields["PPid"][0])
            sizes[int(folder.name)] = 1024 * int(fields["VmRSS"][0]) if "VmRSS" in fields else 0

    def is_in_tree(process: int) -> bool:
        while process not in (0, root):
            process = parents.get(process, 0)
        return process == root

    return sum(size for process, size in sizes.items() if is_in_tree(process))


def measure(command: list[str]) -> tuple[float, int]:
    """Run a command. Return its duration in seconds and the peak of its memory in bytes."""
    peak = 0
    start = time.perf_counter()
    with subprocess.Popen(command, cwd=ROOT) as process:
        ended = threading.Event()

        def sample() -> None:
            nonlocal peak
            while not ended.wait(0.05):
                peak = max(peak, resident_bytes(process.pid))

        sampler = threading.Thread(target=sample)
        sampler.start()
        status = process.wait()
        ended.set()
        sampler.join()
    if status:
        raise SystemExit(status)
    return time.perf_counter() - start, peak


def main() -> None:
    """Write the table, prepare it, and print the figures."""
    parser = argparse.ArgumentParser(description="Measures the speed and the memory of prepare.")
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the table (default: 1,000,000)")
    parser.add_argument("--folder", type=Path, help="directory for the files (default: a temporary one)")
    parser.add_argument("--options", nargs="*", default=["--time", "time"], help="further options of prepare")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        table = Path(folder) / "table.csv"
        write_table(table, options.rows)
        size = table.stat().st_size
        program = [sys.executable, "-m", "projects.home.recap.data.prepare", "--input", str(table)]
        seconds, peak = measure([*program, "--labels", "clicked", "--out", f"{folder}/out", *options.options])
    sys.stdout.write(
        f"{options.rows:,} rows, {size / 2**20:,.0f} MiB: {seconds:.1f} s, {options.rows / seconds:,.0f} rows/s, peak "
        f"{peak / 2**20:,.0f} MiB\n"
    )


if __name__ == "__main__":
    main()
