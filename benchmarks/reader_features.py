"""Measures how fast columns of an ordinary table become the arrays of features. benchmarks/reader.py runs it.

A row has 20 numbers, 10 strings of 1,000 to 100,000 distinct values, and a list of 20 strings of 100,000 distinct
values; 5% of the numbers and of the single strings are null, and a file has 16,384 rows per row group. Every method
ends with the same arrays: float32 [rows, 20], and int32 [rows, 30] with the row of a table for each string. The hash
ids are Spark's pmod(xxhash64(c), n) + 2, and 0 for null; the vocabulary ids come from files with all values but every
tenth. No method knows that all lists have 20 values. A method reads one row group at a time, as a reader of data that
exceeds memory does, if not said otherwise.
"""

import importlib
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
from numpy.typing import NDArray  # noqa: E402

ROWS, ROWS_PER_GROUP = 131_072, 16_384
NUMBERS = [f"number_{index}" for index in range(20)]
SIZES = {f"category_{index}": int(size) for index, size in enumerate(np.geomspace(1_000, 100_000, 10))}
LIST, LIST_SIZE, LIST_LENGTH = "last_items", 100_000, 20
COLUMNS = [*NUMBERS, *SIZES, LIST]
MEMORY_FILES = (1, 4, 16)
SECONDS = 4.0
"""Duration of one measurement of a method."""
LOOP_GROUPS = 1
"""Number of row groups that the row loop reads."""

Arrays = tuple[NDArray[np.float32], NDArray[np.int32]]
"""Numbers and ids of some rows."""


class Bound(NamedTuple):
    """A bound that this project sets itself: `ours` is at least `times` as fast as `other`."""

    ours: str
    other: str
    times: float


BOUNDS = (
    Bound("ours, hash ids", "polars, hash ids by xxhash", 1.8),
    Bound("ours, vocabularies", "polars, vocabulary join", 1.6),
    Bound("ours, vocabularies", "pandas, factorize", 3.0),
    Bound("ours, vocabularies", "row loop, vocabularies", 5.0),
    Bound("ours, hash ids", "decoding alone", 0.35),
    Bound("ours, vocabularies", "decoding alone", 0.35),
)


# --- Data ---


def write_data(folder: Path) -> None:
    """Write a file of rows, and the vocabularies."""
    import pyarrow as pa

    from common.features.vocabulary import write_vocabulary
    from common.reader.parquet_file import create_parquet

    rng = np.random.default_rng(0)
    (folder / "data").mkdir(parents=True)
    columns: dict[str, Any] = {}
    for name in NUMBERS:
        columns[name] = pa.array(rng.standard_normal(ROWS).astype(np.float32), mask=rng.random(ROWS) < 0.05)
    for name, size in SIZES.items():
        values = _values(name, size)
        columns[name] = pa.array(values[rng.integers(0, size, ROWS)], mask=rng.random(ROWS) < 0.05)
        write_vocabulary(folder / f"{name}.parquet", pa.array(_known(values)))
    items = _values(LIST, LIST_SIZE)
    offsets = np.arange(0, ROWS * LIST_LENGTH + 1, LIST_LENGTH, dtype=np.int32)
    columns[LIST] = pa.ListArray.from_arrays(offsets, pa.array(items[rng.integers(0, LIST_SIZE, offsets[-1])]))
    write_vocabulary(folder / f"{LIST}.parquet", pa.array(_known(items)))
    table = pa.table(columns)
    with create_parquet(folder / "data" / "part-0.parquet", table.schema, compression="zstd") as writer:
        writer.write_table(table, row_group_size=ROWS_PER_GROUP)


def _values(name: str, size: int) -> NDArray[np.object_]:
    return np.array([f"{name[:4]}_{value:06d}" for value in range(size)], object)


def _known(values: NDArray[np.object_]) -> NDArray[np.object_]:
    known: NDArray[np.object_] = values[np.arange(len(values)) % 10 != 0]
    return known


def _vocabulary(folder: Path, name: str) -> Any:
    import pyarrow.parquet as pq

    return pq.read_table(folder / f"{name}.parquet")


def _file(folder: Path) -> Path:
    return folder / "data" / "part-0.parquet"


# --- Methods: each yields the arrays of some rows at a time, from the beginning of the file ---


def _ours(folder: Path, encoding: Callable[[str, int], dict[str, Any]]) -> Callable[[], Iterator[Arrays]]:
    from common.features.encoder import CONTINUOUS, IDS

    table = _table(folder / "data", encoding)

    def read() -> Iterator[Arrays]:
        for group in range(len(table.rows_per_group)):
            decoded = table.decode(group)
            yield decoded[CONTINUOUS], decoded[IDS]

    return read


def _table(folder: Path, encoding: Callable[[str, int], dict[str, Any]]) -> Any:
    """Open the files in a folder with features of all columns. `encoding` has the keys of a category."""
    from common.features.config import CategoriesFeature, CategoryFeature, Feature, NumberFeature
    from common.features.encoder import FeatureEncoder
    from common.reader.files import matching_files
    from common.reader.parquet import ParquetTable

    features: dict[str, Feature] = {name: NumberFeature(kind="number", missing=0.0) for name in NUMBERS}
    for name, size in SIZES.items():
        features[name] = CategoryFeature(kind="category", **encoding(name, size))
    features[LIST] = CategoriesFeature(kind="categories", max_length=LIST_LENGTH, **encoding(LIST, LIST_SIZE))
    return ParquetTable(matching_files(str(folder)), {}, encoder=FeatureEncoder.open(features))


def _hashed(_: str, size: int) -> dict[str, Any]:
    return {"hash_buckets": size}


def ours_hashed(folder: Path) -> Callable[[], Iterator[Arrays]]:
    return _ours(folder, _hashed)


def ours_vocabulary(folder: Path) -> Callable[[], Iterator[Arrays]]:
    return _ours(folder, lambda name, _: {"vocabulary": str(folder / f"{name}.parquet")})


def decoding(folder: Path) -> Callable[[], Iterator[Arrays]]:
    """Decode row groups with pyarrow, as this project's reader does, into Arrow arrays that nobody uses."""
    from common.reader.parquet_file import open_parquet, read_footer

    footer = read_footer(_file(folder))

    def read() -> Iterator[Arrays]:
        for group in range(footer.num_row_groups):
            with open_parquet(_file(folder), footer) as file:
                num_rows = file.read_row_group(group, columns=COLUMNS, use_threads=False).num_rows
            yield np.empty((num_rows, 0), np.float32), np.empty((num_rows, 0), np.int32)

    return read


def _fill(rows: NDArray[np.int32], ids: NDArray[np.int32], lengths: NDArray[Any]) -> None:
    """Write the ids of lists, one after another, to rows [lists, LIST_LENGTH], which end with -1."""
    rows[:] = -1
    rows[np.arange(LIST_LENGTH) < lengths[:, None]] = ids


def _polars(
    folder: Path, hashed: Callable[[Any, str, int], Any] | None, *, whole: bool = False
) -> Callable[[], Iterator[Arrays]]:
    """Encode each column with `hashed`, or by a join with its vocabulary, one row group or the whole file at a time."""
    pl = importlib.import_module("polars")
    vocabularies = {
        name: pl.from_arrow(_vocabulary(folder, name)).select(value="value", row=pl.col("index").cast(pl.Int32) + 2)
        for name in (*SIZES, LIST)
    }

    def ids(values: Any, name: str, size: int) -> Any:
        if hashed is not None:
            return hashed(values, name, size).fill_null(0).cast(pl.Int32).to_numpy()
        joined = pl.DataFrame({"value": values}).join(vocabularies[name], on="value", how="left", maintain_order="left")
        rows = joined.select(pl.when(pl.col("value").is_null()).then(0).otherwise(pl.col("row").fill_null(1)))
        return rows.to_series().cast(pl.Int32).to_numpy()

    def read() -> Iterator[Arrays]:
        num_rows = ROWS if whole else ROWS_PER_GROUP
        for begin in range(0, ROWS, num_rows):
            # polars decodes only the row groups that it needs.
            frame = pl.scan_parquet(_file(folder)).select(COLUMNS).slice(begin, num_rows).collect()
            numbers = frame.select(pl.col(NUMBERS).fill_null(0.0)).to_numpy().astype(np.float32, copy=False)
            rows = np.empty((len(frame), len(SIZES) + LIST_LENGTH), np.int32)
            for index, (name, size) in enumerate(SIZES.items()):
                rows[:, index] = ids(frame[name], name, size)
            last = frame[LIST].list.tail(LIST_LENGTH)
            lengths = last.list.len().to_numpy()
            # An empty list would become a null.
            _fill(rows[:, len(SIZES) :], ids(last.filter(lengths > 0).explode(), LIST, LIST_SIZE), lengths)
            yield numbers, rows

    return read


def polars_xxhash(folder: Path) -> Callable[[], Iterator[Arrays]]:
    """Hash the distinct values with the package xxhash, and replace values by hashes in polars."""
    import xxhash

    pl = importlib.import_module("polars")

    def hashed(values: Any, _: str, size: int) -> Any:
        distinct = values.drop_nulls().unique()
        hashes = [xxhash.xxh64_intdigest(value.encode(), 42) for value in distinct.to_list()]
        rows = pl.Series(np.array(hashes, np.uint64).view(np.int64) % size + 2)
        return values.replace_strict(distinct, rows, default=None)

    return _polars(folder, hashed)


def polars_plugin(folder: Path) -> Callable[[], Iterator[Arrays]]:
    """Hash all values with the plugin polars-hash, which is compiled code."""
    pl, polars_hash = importlib.import_module("polars"), importlib.import_module("polars_hash")

    def hashed(values: Any, _: str, size: int) -> Any:
        hashes = polars_hash.col("value").nchash.xxhash64(seed=42).reinterpret(signed=True)
        # The remainder of polars has the sign of the dividend or the divisor, depending on the release.
        return pl.DataFrame({"value": values}).select((hashes % size + size) % size + 2).to_series()

    return _polars(folder, hashed)


def polars_join(folder: Path) -> Callable[[], Iterator[Arrays]]:
    return _polars(folder, None)


def polars_join_of_file(folder: Path) -> Callable[[], Iterator[Arrays]]:
    return _polars(folder, None, whole=True)


def pandas_factorize(folder: Path) -> Callable[[], Iterator[Arrays]]:
    """Factorize each column in pandas, and look up its distinct values in the vocabulary."""
    from common.reader.parquet_file import open_parquet

    pd = importlib.import_module("pandas")

    vocabularies = {name: pd.Index(_vocabulary(folder, name)["value"].to_pandas()) for name in (*SIZES, LIST)}

    def ids(values: Any, name: str) -> Any:
        codes, distinct = pd.factorize(values)
        # -1, for null, is the last of them.
        found = vocabularies[name].get_indexer(distinct)
        return np.append(np.where(found < 0, 1, found + 2), 0)[codes].astype(np.int32)

    def read() -> Iterator[Arrays]:
        with open_parquet(_file(folder)) as file:
            for group in range(file.num_row_groups):
                frame = file.read_row_group(group, columns=COLUMNS, use_threads=False).to_pandas(use_threads=False)
                numbers = frame[NUMBERS].fillna(0.0).to_numpy(np.float32)
                rows = np.empty((len(frame), len(SIZES) + LIST_LENGTH), np.int32)
                for index, name in enumerate(SIZES):
                    rows[:, index] = ids(frame[name], name)
                last = [items[-LIST_LENGTH:] for items in frame[LIST].to_numpy()]
                lengths = np.fromiter(map(len, last), np.int64, len(last))
                _fill(rows[:, len(SIZES) :], ids(np.concatenate(last), LIST), lengths)
                yield numbers, rows

    return read


def row_loop(folder: Path) -> Callable[[], Iterator[Arrays]]:
    """Look up each value of each row in a dict."""
    from common.reader.parquet_file import open_parquet

    indices = {
        name: dict(zip(*(_vocabulary(folder, name)[key].to_pylist() for key in ("value", "index")), strict=True))
        for name in (*SIZES, LIST)
    }

    def row_of(value: str | None, indices: dict[str, int]) -> int:
        return 0 if value is None else indices.get(value, -1) + 2

    def read() -> Iterator[Arrays]:
        for group in range(LOOP_GROUPS):
            with open_parquet(_file(folder)) as file:
                table = file.read_row_group(group, columns=COLUMNS, use_threads=False)
            numbers, ids = [], []
            for row in table.to_pylist():
                numbers.append([row[name] or 0.0 for name in NUMBERS])
                own = [row_of(row[name], indices[name]) for name in SIZES]
                last = [row_of(value, indices[LIST]) for value in row[LIST][-LIST_LENGTH:]]
                ids.append(own + last + [-1] * (LIST_LENGTH - len(last)))
            yield np.array(numbers, np.float32), np.array(ids, np.int32)

    return read


METHODS: dict[str, tuple[Callable[[Path], Callable[[], Iterator[Arrays]]], str]] = {
    "ours, hash ids": (ours_hashed, "hash"),
    "ours, vocabularies": (ours_vocabulary, "vocabulary"),
    "decoding alone": (decoding, ""),
    "polars, hash ids by xxhash": (polars_xxhash, "hash"),
    "polars, hash ids by polars-hash": (polars_plugin, "hash"),
    "polars, vocabulary join": (polars_join, "vocabulary"),
    "polars, join of the whole file": (polars_join_of_file, "vocabulary"),
    "pandas, factorize": (pandas_factorize, "vocabulary"),
    "row loop, vocabularies": (row_loop, "vocabulary"),
}
"""Methods by name, with what their ids must agree on."""


# --- Measurements ---


def worker(name: str, folder: Path) -> None:
    """Print rows per second of processor time, and sums that show whether two methods make the same arrays."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    read = METHODS[name][0](folder)
    rows, sums, seconds = 0, [0.0, 0.0], 0.0
    numbers, ids = next(iter(read()))  # warms the caches too
    if METHODS[name][1]:
        numbers, ids = numbers[:ROWS_PER_GROUP], ids[:ROWS_PER_GROUP]
        weights = np.arange(1, ids.shape[1] + 1)
        sums = [float(numbers.sum(dtype=np.float64)), float((ids @ weights).astype(np.float64).sum())]
    began = time.process_time()
    while seconds < SECONDS:
        for numbers, _ in read():
            rows += len(numbers)
        seconds = time.process_time() - began
    print(json.dumps({"rows_per_s": rows / seconds, "sums": sums}), flush=True)  # noqa: T201


def memory_worker(folder: Path) -> None:
    """Read one shuffled epoch as training does, and print rows and peak memory."""
    from common.batch import Batch
    from common.reader.reader import BatchReader

    table = _table(folder, _hashed)
    reader = BatchReader(table, lambda *_: Batch(), global_batch_size=1024, lanes=2)
    for _ in reader.train(seed=0):
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"rows": table.num_rows, "peak_mib": peak}), flush=True)  # noqa: T201


def _run(*arguments: str) -> dict[str, Any] | None:
    """Return what a worker prints, or None if it needs a package that is not installed."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"}
    process = subprocess.run([sys.executable, __file__, *arguments], env=environment, capture_output=True, text=True)
    if process.returncode:
        last = process.stderr.strip().splitlines()[-1]
        if last.startswith("ModuleNotFoundError"):
            return None
        sys.exit(process.stderr)
    result: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return result


def features(scratch: Path, rounds: int) -> str:
    """Return tables of speeds, bounds and memory. The methods take turns."""
    from tabulate import tabulate

    folder = scratch / "features"
    write_data(folder)
    speeds: dict[str, list[float]] = {}
    sums: dict[str, dict[str, list[float]]] = {"hash": {}, "vocabulary": {}, "": {}}
    missing: list[str] = []
    for _ in range(rounds):
        for name in METHODS:
            if name in missing:
                continue
            if (found := _run(name, str(folder))) is None:
                missing.append(name)
                continue
            speeds.setdefault(name, []).append(found["rows_per_s"])
            sums[METHODS[name][1]][name] = found["sums"]
    for kind in ("hash", "vocabulary"):
        first, *others = sums[kind].values()
        if any(not np.allclose(first, other, rtol=1e-5) for other in others):
            sys.exit(f"methods disagree on the arrays: {sums[kind]}")
    lines = [[name, f"{1e6 / statistics.median(values):,.2f}", _spread(values)] for name, values in speeds.items()]
    parts = [tabulate(lines, ["method", "µs per row", "rows/s of one core"], disable_numparse=True, colalign=_LRR)]
    ratios = []
    for ours, other, times in BOUNDS:
        if other in speeds:
            each = [a / b for a, b in zip(speeds[ours], speeds[other], strict=True)]
            met = "yes" if statistics.median(each) >= times else "no"
            ratios.append([f"{ours} / {other}", _spread(each, 2), f"{times}", met])
    parts.append(
        tabulate(ratios, ["ratio", "measured", "bound", "met"], disable_numparse=True, colalign=(*_LRR, "left"))
    )
    if missing:
        parts.append(
            f"Not measured, because their packages (polars, polars-hash, pandas) are missing: {', '.join(missing)}"
        )
    parts.append(_memory(folder))
    return "\n\n".join(parts)


_LRR = ("left", "right", "right")


def _memory(folder: Path) -> str:
    from tabulate import tabulate

    lines = []
    for number in MEMORY_FILES:
        copies = folder / f"copies-{number}"
        copies.mkdir()
        for index in range(number):
            shutil.copy(_file(folder), copies / f"part-{index}.parquet")
        found = _run("memory", str(copies))
        assert found is not None
        lines.append([f"{found['rows']:,}", f"{found['rows'] // ROWS_PER_GROUP:,}", f"{found['peak_mib']:,.0f}"])
        shutil.rmtree(copies)
    headers = ["rows", "row groups", "peak memory, MiB"]
    return tabulate(lines, headers, disable_numparse=True, colalign=["right"] * 3)


def _spread(values: list[float], digits: int = 0) -> str:
    return f"{statistics.median(values):,.{digits}f} [{min(values):,.{digits}f} to {max(values):,.{digits}f}]"


if __name__ == "__main__":
    if sys.argv[1] == "memory":
        memory_worker(Path(sys.argv[2]))
    else:
        worker(sys.argv[1], Path(sys.argv[2]))
