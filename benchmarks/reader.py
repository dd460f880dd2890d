"""Measures reading: speed on one core compared with tf.data, the cost of checksums, cost and memory by number of rows,
waiting for data, and the encoding of features (reader_features.py).

    python benchmarks/reader.py [--only speed,checksums,scale,wait,features] [--tensorflow PYTHON] [--rounds 3]
        [--rows 8192]

--tensorflow is the interpreter of an environment with TensorFlow (`pip install tensorflow`). Without it, tf.data is not
measured. The readers take turns, each in a process bound to one core. A figure is the median over the rounds, with the
smallest and the largest. Records per second means per second of processor time; on an idle machine without waiting
threads, this equals wall-clock time.

The rows have the layout of the original: 6,000 continuous features (70% zeros, the rest log-normal, every second one
rounded), 512 binary features, 320 discrete features, three embeddings of 200 normal numbers, and 13 labels. The
original's files are gzip TFRecords with all features. Our files contain only the 2,117 + 59 features that its
configuration uses, without the discrete ones, as a conversion can write them.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
from numpy.typing import NDArray  # noqa: E402

from benchmarks.reader_features import features  # noqa: E402

BATCH, LANES, SHUFFLE = 128, 8, 1024
FILES = 4
WIDTHS = {"continuous": 6000, "binary": 512, "discrete": 320, "embedding": 200}
CUT = {"continuous": 2117, "binary": 59}
LABELS = 13
SECONDS = 5.0
"""Duration of one measurement of a reader."""
SIZES = (10**4, 10**5, 10**6, 10**7)

Rows = dict[str, NDArray[Any]]


# --- Data ---


def make_rows(rng: np.random.Generator, count: int) -> Rows:
    """Return random rows with the layout of the original."""
    continuous = rng.lognormal(1.5, 2.0, (count, WIDTHS["continuous"])).astype(np.float32)
    continuous[:, ::2] = np.floor(continuous[:, ::2])
    continuous[rng.random(continuous.shape) < 0.7] = 0.0
    rows: Rows = {
        "continuous": continuous,
        "binary": (rng.random((count, WIDTHS["binary"])) < 0.1).astype(np.uint8),
        "discrete": rng.zipf(1.3, (count, WIDTHS["discrete"])).astype(np.int64) % 100_000,
    }
    for name in ("user_embedding", "user_eng_embedding", "author_embedding"):
        rows[name] = rng.standard_normal((count, WIDTHS["embedding"])).astype(np.float32)
    return rows | {f"label_{i}": (rng.random(count) < 0.05).astype(np.int8) for i in range(LABELS)}


def cut(rows: Mapping[str, NDArray[Any]]) -> Rows:
    """Return only the features that the original's configuration uses."""
    return {
        name: values[:, : CUT[name]] if name in CUT else values for name, values in rows.items() if name != "discrete"
    }


def write_parquet(folder: Path, parts: list[Rows], vectors: Any, half: bool = False) -> None:
    from common.files.table_writer import TableColumn, TableWriter
    from projects.home.recap.data.parquet import write_schema_json

    def stored(values: NDArray[Any]) -> NDArray[Any]:
        with np.errstate(over="ignore"):
            return values.astype(np.float16) if half and values.dtype == np.float32 else values

    folder.mkdir()
    for index, rows in enumerate(parts):
        rows = {name: stored(values) for name, values in cut(rows).items()}
        columns = [TableColumn(n, v.dtype.name, v.shape[1] if v.ndim == 2 else None) for n, v in rows.items()]
        with TableWriter(folder / f"part-{index}.parquet", columns, vectors=vectors) as writer:
            writer.write(rows)
    write_schema_json(folder / "schema.json", columns)


def write_tfrecords(folder: Path, source: Path, cut_rows: bool) -> None:
    """Convert .npz files to TFRecords; runs in the environment with TensorFlow."""
    import tensorflow as tf

    folder.mkdir()
    options = tf.io.TFRecordOptions(compression_type="GZIP")
    for path in sorted(source.glob("*.npz")):
        rows = dict(np.load(path))
        rows = cut(rows) if cut_rows else rows
        with tf.io.TFRecordWriter(str(folder / f"{path.stem}.gz"), options=options) as writer:
            for row in range(len(rows["binary"])):
                feature = {}
                for name, values in rows.items():
                    value = np.atleast_1d(values[row])
                    feature[name] = (
                        tf.train.Feature(float_list=tf.train.FloatList(value=value))
                        if value.dtype == np.float32
                        else tf.train.Feature(int64_list=tf.train.Int64List(value=value.astype(np.int64)))
                    )
                writer.write(tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString())


# --- Readers: each yields 0 when it is ready, and then the number of rows of every batch ---


def tf_data(folder: Path) -> Iterator[int]:
    """Read as the original does: files, shuffle buffer, batches, parse_example, truncation."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    whole = folder.name == "tfrecords"
    lengths = WIDTHS if whole else WIDTHS | CUT
    spec = {
        "continuous": tf.io.FixedLenFeature([lengths["continuous"]], tf.float32),
        "binary": tf.io.FixedLenFeature([lengths["binary"]], tf.int64),
    }
    if whole:
        spec["discrete"] = tf.io.FixedLenFeature([lengths["discrete"]], tf.int64)
    for name in ("user_embedding", "user_eng_embedding", "author_embedding"):
        spec[name] = tf.io.FixedLenFeature([lengths["embedding"]], tf.float32)
    spec |= {f"label_{i}": tf.io.FixedLenFeature([1], tf.int64) for i in range(LABELS)}

    def parse(records: Any) -> Any:
        rows = tf.io.parse_example(records, spec)
        return rows | {name: rows[name][:, :width] for name, width in CUT.items()}

    data = tf.data.TFRecordDataset(sorted(map(str, folder.glob("*.gz"))), compression_type="GZIP")
    data = data.repeat().shuffle(SHUFFLE, seed=0).batch(BATCH).map(parse).prefetch(2)
    yield 0
    for batch in data:
        yield len(batch["continuous"])


def ours(folder: Path) -> Iterator[int]:
    """Read as training does: in lanes, shuffled, decoded ahead."""
    import torch

    from projects.home.recap.data.config import RecapDataConfig, SegDenseSchema, TaskData
    from projects.home.recap.data.dataset import RecapDataset

    torch.set_num_threads(1)
    tasks = {f"label_{i}": TaskData() for i in range(LABELS)}
    schema = SegDenseSchema(schema_path=str(folder / "schema.json"))
    config = RecapDataConfig(
        inputs=str(folder), global_batch_size=BATCH, lanes=LANES, seg_dense_schema=schema, tasks=tasks
    )
    dataset = RecapDataset.open(config, list(tasks), "data", evaluation=False)
    yield 0
    for item in dataset.reader(0, 1).train(seed=0, num_epochs=None):
        yield item.batch.batch_size


def small_rows(folder: Path) -> Iterator[int]:
    """Read one epoch of rows with four features and a label."""
    from common.batch import Batch
    from common.reader.column import Column
    from common.reader.files import matching_files
    from common.reader.parquet import ParquetTable
    from common.reader.reader import BatchReader

    columns: dict[Hashable, Column] = {"x": Column("x", width=4), "label": Column("label")}
    reader = BatchReader(
        ParquetTable(matching_files(str(folder)), columns), lambda *_: Batch(), global_batch_size=1024, lanes=LANES
    )
    yield 0
    for _ in reader.train(seed=0):
        yield 1024


READERS = {"tf.data": tf_data, "ours": ours, "small": small_rows}


def worker(kind: str, folder: Path) -> None:
    """Print records per second of processor time, and peak memory."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    batches = READERS[kind](folder)
    next(batches)
    if kind != "small":
        started = time.perf_counter()
        while time.perf_counter() - started < SECONDS / 3:  # warm the caches
            next(batches)
    records, began, started = 0, time.process_time(), time.perf_counter()
    for rows in batches:
        records += rows
        if kind != "small" and time.perf_counter() - started > SECONDS:
            break
    seconds = time.process_time() - began
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"records_per_s": records / seconds, "peak_mib": memory}), flush=True)  # noqa: T201
    os._exit(0)  # does not wait for the readers, which never end


def run(python: str, *arguments: str) -> dict[str, float]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    command = [python, __file__, *arguments]
    process = subprocess.run(command, env=environment, capture_output=True, text=True)
    if process.returncode:
        sys.exit(f"{' '.join(command)}\n{process.stderr}")
    result: dict[str, float] = json.loads(process.stdout.splitlines()[-1]) if process.stdout else {}
    return result


# --- Measurements ---


def spread(values: list[float], digits: int = 0) -> str:
    return f"{statistics.median(values):,.{digits}f} [{min(values):,.{digits}f} to {max(values):,.{digits}f}]"


def speed(scratch: Path, tensorflow: str | None, rounds: int, num_rows: int) -> str:
    from tabulate import tabulate

    rng = np.random.default_rng(0)
    parts = [make_rows(rng, num_rows // FILES) for _ in range(FILES)]
    readers = {
        "ours, lists": (sys.executable, "ours", scratch / "list"),
        "ours, binary": (sys.executable, "ours", scratch / "binary"),
        "ours, binary, float16": (sys.executable, "ours", scratch / "float16"),
    }
    write_parquet(scratch / "list", parts, "list")
    write_parquet(scratch / "binary", parts, "binary")
    write_parquet(scratch / "float16", parts, "binary", half=True)
    if tensorflow is not None:
        for index, rows in enumerate(parts):
            np.savez(scratch / f"part-{index}.npz", **rows)  # type: ignore[arg-type]
        for name, records in (("the original's files", "tfrecords"), ("the same rows as ours", "tfrecords-cut")):
            run(tensorflow, "--write_tfrecords", str(scratch / records))
            readers[f"tf.data, {name}"] = (tensorflow, "tf.data", scratch / records)
    speeds: dict[str, list[float]] = {name: [] for name in readers}
    for _ in range(rounds):
        for name, (python, kind, folder) in readers.items():
            speeds[name].append(run(python, "--worker", kind, str(folder))["records_per_s"])
    table = []
    for name, (_, _, folder) in readers.items():
        size = sum(path.stat().st_size for path in folder.iterdir()) / num_rows
        ratios = [
            spread([a / b for a, b in zip(speeds[name], speeds[other], strict=True)], 1)
            for other in readers
            if other.startswith("tf.data")
        ]
        table.append([name, f"{size:,.0f}", spread(speeds[name]), *ratios])
    headers = ["reader", "bytes/record", "records/s of one core"]
    headers += [f"times {name}" for name in readers if name.startswith("tf.data")]
    return tabulate(table, headers, disable_numparse=True, colalign=["left"] + ["right"] * (len(headers) - 1))


def checksums(scratch: Path, rounds: int, num_rows: int) -> str:
    """Compare decoding with and without the verification of checksums, in turns on one core."""
    import pyarrow.parquet as pq
    from tabulate import tabulate

    def decode(folder: Path, verify: bool) -> float:
        began = time.process_time()
        for path in sorted(folder.glob("*.parquet")):
            with pq.ParquetFile(path, page_checksum_verification=verify) as file:
                for group in range(file.metadata.num_row_groups):
                    file.read_row_group(group, use_threads=False)
        return time.process_time() - began

    rng = np.random.default_rng(0)
    parts = [make_rows(rng, num_rows // FILES) for _ in range(FILES)]
    table = []
    for vectors in ("list", "binary"):
        write_parquet(folder := scratch / f"checked-{vectors}", parts, vectors)
        decode(folder, True)
        turns = [(decode(folder, True), decode(folder, False)) for _ in range(10 * rounds)]
        microseconds = [[1e6 * seconds / num_rows for seconds in column] for column in zip(*turns, strict=True)]
        ratios = [verified / unverified for verified, unverified in turns]
        table.append([vectors, *(spread(column, 1) for column in microseconds), spread(ratios, 2)])
    headers = ["vectors", "µs per record, verified", "not verified", "times the time"]
    return tabulate(table, headers, disable_numparse=True, colalign=["left"] + ["right"] * 3)


def scale(scratch: Path, rounds: int) -> str:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from tabulate import tabulate

    from common.reader.vectors import vector_array, vector_field

    rng = np.random.default_rng(0)
    field = vector_field("x", "float32", 4, "binary")
    schema = pa.schema([field, pa.field("label", pa.int8(), nullable=False)])
    table = []
    for size in SIZES:
        folder = scratch / f"rows-{size}"
        folder.mkdir()
        with pq.ParquetWriter(folder / "part.parquet", schema, compression="zstd") as writer:
            for begin in range(0, size, 65_536):
                count = min(65_536, size - begin)
                arrays = [
                    vector_array(rng.standard_normal((count, 4)).astype(np.float32), field),
                    pa.array((rng.random(count) < 0.05).astype(np.int8)),
                ]
                writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
        turns = [run(sys.executable, "--worker", "small", str(folder)) for _ in range(rounds)]
        per_million = [1e6 / turn["records_per_s"] for turn in turns]
        table.append([f"{size:,}", spread(per_million, 2), spread([turn["peak_mib"] for turn in turns])])
    headers = ["rows", "seconds per million rows", "peak memory, MiB"]
    return tabulate(table, headers, disable_numparse=True, colalign=["right"] * 3)


def wait(scratch: Path, processes: int) -> str:
    """Train the production configuration on its generated data."""
    data, run_dir = scratch / "production", scratch / f"run-{processes}"
    if not data.exists():
        generate = ["-m", "projects.home.recap.tools.generate", "--preset", "production", "--out", str(data)]
        subprocess.run([sys.executable, *generate], cwd=ROOT, check=True, capture_output=True)
    module = ["-m", "projects.home.recap.main", "--config", "projects/home/recap/configs/production.yaml"]
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    options = {
        "training.save_dir": run_dir,
        "training.num_train_steps": 24,
        "training.eval_every_n": 0,
        "train_data.inputs": data / "train",
        "train_data.seg_dense_schema.schema_path": data / "schema.json",
        "validation_data": "{}",
    }
    overrides = [word for key, value in options.items() for word in ("--set", f"{key}={value}")]
    threads = max(1, (os.cpu_count() or 1) // processes)
    subprocess.run(
        [sys.executable, *(launcher if processes > 1 else []), *module, *overrides],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        check=True,
        capture_output=True,
    )
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    timing = [line["timing"] for line in lines if line["mode"] == "train"]
    shares = ", ".join(f"{window['data_wait_share']:.2%}" for window in timing)
    examples = statistics.median(window["examples_per_second"] for window in timing)
    return f"{processes} process(es), {examples:,.0f} examples/s: waiting {shares}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only",
        default="speed,checksums,scale,wait,features",
        help="comma-separated list of speed, checksums, scale, wait, features",
    )
    parser.add_argument("--tensorflow", metavar="PYTHON", help="interpreter of an environment with TensorFlow")
    parser.add_argument("--rounds", type=int, default=3, help="number of rounds")
    parser.add_argument("--rows", type=int, default=8192, help="number of rows to measure speed with")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--write_tfrecords", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(args.worker[0], Path(args.worker[1]))
    if args.write_tfrecords:
        write_tfrecords(args.write_tfrecords, args.write_tfrecords.parent, args.write_tfrecords.name == "tfrecords-cut")
        return
    selected = args.only.split(",")
    with tempfile.TemporaryDirectory() as scratch:
        if "speed" in selected:
            print(speed(Path(scratch), args.tensorflow, args.rounds, args.rows), "\n", sep="\n", flush=True)  # noqa: T201
        if "checksums" in selected:
            print(checksums(Path(scratch), args.rounds, args.rows), "\n", sep="\n", flush=True)  # noqa: T201
        if "scale" in selected:
            print(scale(Path(scratch), args.rounds), "\n", sep="\n", flush=True)  # noqa: T201
        if "wait" in selected:
            for processes in (1, 2):
                print(wait(Path(scratch), processes), flush=True)  # noqa: T201
        if "features" in selected:
            print(features(Path(scratch), args.rounds), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
