"""TFRecord files of tf.Examples to Parquet: `python -m projects.home.recap.data.convert --config YAML --out DIR`.

Owns the command line, the processes, progress and the report. Which features become which columns is decided in
conversion_plan.py, how a file is converted in conversion.py. Every process that converts imports this module anew, so
what imports torch is imported within functions.
"""

import argparse
import contextlib
import ctypes
import fcntl
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import NamedTuple, Never

from tqdm import tqdm

from common.logging import setup_logging
from common.reader.vectors import Storage
from core.config.base_config import UserError
from projects.home.recap.data.conversion import OTHER_LAYOUT, Job, Layout, Plan, convert_file, plan_jobs
from projects.home.recap.data.parquet import write_schema_json
from projects.home.recap.data.tfrecords import RecordError

logger = logging.getLogger(__name__)

PROGRAM = "python -m projects.home.recap.data.convert"
AFTER_INTERRUPT = "continues with the files that are left"

_POLL_IN_S = 0.2
_LOG_EVERY_S = 10.0


class Outcome(NamedTuple):
    """What became of a file."""

    rows: int
    output_size: int
    missing: Counter[str]
    """By name of a feature, how many records were without it."""
    problem: str | None = None
    """Why there is no output, None where there is one."""


def main() -> int:
    """Reads the command line, converts, and tells what was made.

    Returns:
      the exit status: 0, or 1 where a file could not be converted.
    """
    setup_logging(rank=0)
    args = _parse_args()
    out = args.out.expanduser()
    inputs, layout = _what_to_convert(args)
    plan = plan_jobs(inputs, out, layout)
    with _claimed(out, layout):
        _write_schema(out, layout)
        start = time.perf_counter()
        outcomes = _convert_all(plan, layout, args.processes)
        seconds = time.perf_counter() - start
    sys.stdout.write(_report(out, plan, layout, outcomes, seconds))
    return 1 if any(outcome.problem for outcome in outcomes) else 0


def _parse_args() -> argparse.Namespace:
    from common.program import ArgumentParser

    parser = ArgumentParser(
        prog=PROGRAM, description="Converts TFRecord files of tf.Examples, gzip'd or not, to Parquet (docs/convert.md)."
    )
    layout = parser.add_mutually_exclusive_group(required=True)
    layout.add_argument("--config", metavar="YAML", help="the configuration of a run, which says what the records hold")
    layout.add_argument("--schema", metavar="JSON", help="segdense.json: convert all of it, by its own names")
    parser.add_argument(
        "--set", action="append", metavar="KEY=VALUE", help="with --config: override a key; may be given several times"
    )
    parser.add_argument("--data_set", help="with --config: train_data (the default) or validation_data.NAME")
    parser.add_argument(
        "--inputs", help="glob pattern, file, or directory of TFRecord files; left out: those of the data set"
    )
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="directory for the Parquet files")
    parser.add_argument(
        "--processes", type=_at_least_1, default=len(os.sched_getaffinity(0)), help="one per core if left out"
    )
    parser.add_argument(
        "--lists", action="store_true", help="vectors as lists, which any tool reads; left out: as binary, read faster"
    )
    parser.add_argument(
        "--float16",
        action="store_true",
        help="continuous and embeddings as float16: half the bytes, 11 bits, up to 65504",
    )
    args = parser.parse_args()
    if args.schema is not None:
        if args.set is not None or args.data_set is not None:
            parser.error("--set and --data_set go with --config, not with --schema")
        if args.inputs is None:
            parser.error("--schema needs --inputs")
    return args


def _at_least_1(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number >= 1")
    return int(text)


def _what_to_convert(args: argparse.Namespace) -> tuple[str, Layout]:
    """The files, as --inputs names them, and what becomes of their records."""
    from core.config import load_config_from_yaml
    from projects.home.recap.config import RecapConfig
    from projects.home.recap.data.conversion_plan import features_of_config, features_of_schema

    vectors: Storage = "list" if args.lists else "binary"
    if args.schema is not None:
        return args.inputs, Layout(features_of_schema(args.schema, args.float16), vectors)
    config = load_config_from_yaml(RecapConfig, args.config, args.set or ())
    data_sets = {"train_data": config.train_data}
    data_sets |= {f"validation_data.{name}": partition for name, partition in config.validation_data.items()}
    path = args.data_set or "train_data"
    if path not in data_sets:
        raise UserError(f"--data_set {path}: not in {args.config}, which has {', '.join(data_sets)}")
    inputs = args.inputs or data_sets[path].inputs
    if inputs is None:
        raise UserError(f"{path} of {args.config} has its files by date; name the records' own by --inputs")
    return inputs, Layout(features_of_config(data_sets[path], path, args.float16), vectors)


@contextlib.contextmanager
def _claimed(out: Path, layout: Layout) -> Iterator[None]:
    """Keeps others from writing to `out` meanwhile, and what was made with other options from being mixed with it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = (out / ".conversion").open("a+")
    except OSError as error:
        raise UserError(f"--out {out}: can't be written: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"--out {out}: another conversion is writing there; wait, or give another --out") from None
        lock.seek(0)
        if (found := lock.read()) not in ("", layout.digest):
            raise UserError(f"--out {out}: what is there was made with {OTHER_LAYOUT}; give another --out")
        if not found:
            lock.write(layout.digest)
            lock.flush()
        yield


def _write_schema(out: Path, layout: Layout) -> None:
    path, aside = out / "schema.json", out / ".schema.json.partial"
    try:
        write_schema_json(aside, [feature.column for feature in layout.features])
        if path.exists() and path.read_bytes() != aside.read_bytes():
            aside.unlink()
            raise UserError(f"{path}: is there, with something else than what is converted; give another --out")
        aside.replace(path)
    except OSError as error:
        raise UserError(f"{path}: can't be written: {error.strerror}") from error


class _Shared(NamedTuple):
    """What every process that converts gets once."""

    layout: Layout
    stop: ctypes.c_bool
    """Without a lock: a process may be killed at any moment, and would keep it."""
    read: "Synchronized[int]"
    """Bytes of all sources that were read, or need not be, so far."""
    rows: "Synchronized[int]"


def _convert_all(plan: Plan, layout: Layout, processes: int) -> list[Outcome]:
    """Converts the files, each in one of so many processes.

    Raises:
      UserError: an output can't be written, or a process was killed.
    """
    if not plan.jobs:
        return []
    spawn = multiprocessing.get_context("spawn")
    shared = _Shared(layout, spawn.RawValue(ctypes.c_bool), spawn.Value("q"), spawn.Value("q"))
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # numpy would start a thread per core in each of the processes
    pool = ProcessPoolExecutor(min(processes, len(plan.jobs)), spawn, _begin, (shared,))
    outcomes: list[Outcome] = []
    jobs, pending = iter(plan.jobs), set[Future[Outcome]]()
    progress = _Progress(plan, shared)
    try:
        while True:
            # Not all at once: looking at them takes time for each.
            while len(pending) < 2 * processes and (job := next(jobs, None)) is not None:
                with _interrupt_blocked():
                    pending.add(pool.submit(_convert, job))
            if not pending:
                return outcomes
            done, pending = wait(pending, _POLL_IN_S, FIRST_COMPLETED)
            for future in done:
                outcomes.append(future.result())
                if (problem := outcomes[-1].problem) is not None:
                    logger.warning("not converted: %s", problem)
            progress.show(len(outcomes))
    except BrokenProcessPool as error:
        raise UserError(
            "a process that converted was killed, perhaps because memory ran out (then give fewer --processes); the "
            f"same command {AFTER_INTERRUPT}"
        ) from error
    finally:
        shared.stop.value = True
        pool.shutdown(cancel_futures=True)
        progress.close()


@contextlib.contextmanager
def _interrupt_blocked() -> Iterator[None]:
    """Processes started meanwhile never see a Ctrl-C, which the terminal sends to all; this one does afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _StoppedError(Exception):
    """The process that started this one ends; nobody waits for the file any more."""


_shared: _Shared


def _begin(shared: _Shared) -> None:
    """Makes a process ready to convert; it ends with the one that has started it, however that ends."""
    global _shared
    _shared = shared
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _convert(job: Job) -> Outcome:
    """Converts a file in a process that _begin() has made ready."""
    read = rows = 0

    def progress(more_read: int, more_rows: int) -> None:
        nonlocal read, rows
        if _shared.stop.value:
            raise _StoppedError
        read, rows = read + more_read, rows + more_rows
        _add(_shared.read, more_read)
        _add(_shared.rows, more_rows)

    try:
        missing = convert_file(job.source, job.output, _shared.layout, progress)
        return Outcome(rows, job.output.stat().st_size, missing)
    except RecordError as error:
        return Outcome(0, 0, Counter(), f"{job.source}: {error}")
    finally:
        _add(_shared.read, job.size - read)


def _add(counter: "Synchronized[int]", count: int) -> None:
    with counter.get_lock():
        counter.value += count


class _Progress:
    """A bar over the bytes of the sources on a terminal, lines in the log elsewhere."""

    def __init__(self, plan: Plan, shared: _Shared) -> None:
        self._shared = shared
        self._num_files = len(plan.jobs)
        self._size = sum(job.size for job in plan.jobs)
        self._start = self._logged = time.monotonic()
        self._bar: tqdm[Never] | None = None
        if sys.stderr.isatty():
            self._bar = tqdm(total=self._size, unit="B", unit_scale=True, ncols=100, nrows=20)
        else:
            logger.info("converting %d file(s), %s", self._num_files, _size_text(self._size))

    def show(self, num_done: int) -> None:
        """Shows how far it is, with so many files done."""
        # Not by the values' locks, for the same reason as with stop.
        rows, read = self._shared.rows.get_obj().value, self._shared.read.get_obj().value
        if self._bar is not None:
            self._bar.set_postfix_str(f"{num_done}/{self._num_files} files, {rows:,} records", refresh=False)
            self._bar.update(read - self._bar.n)
            return
        now = time.monotonic()
        if now - self._logged >= _LOG_EVERY_S:
            self._logged = now
            logger.info(
                "%d of %d file(s), %.0f%% of %s, %s records/s",
                num_done,
                self._num_files,
                100 * read / max(self._size, 1),
                _size_text(self._size),
                f"{rows / (now - self._start):,.0f}",
            )

    def close(self) -> None:
        """Leaves the bar as it stands."""
        if self._bar is not None:
            self._bar.close()


def _report(out: Path, plan: Plan, layout: Layout, outcomes: Sequence[Outcome], seconds: float) -> str:
    """What was made, what could not be, and how to read it."""
    good = [outcome for outcome in outcomes if outcome.problem is None]
    bad = [outcome.problem for outcome in outcomes if outcome.problem is not None]
    lines = []
    if good:
        rows = sum(outcome.rows for outcome in good)
        size = _size_text(sum(outcome.output_size for outcome in good))
        speed = f"{seconds:.1f} s, {rows / seconds:,.0f} records/s"
        lines.append(f"converted      {len(good)} file(s), {rows:,} records, {size} of Parquet in {speed}")
        missing = sum((outcome.missing for outcome in good), Counter[str]())
        lines += [f"  {name} missing in {count / rows:.1%} of them, 0 there" for name, count in missing.most_common()]
    if plan.finished:
        lines.append(f"done before    {len(plan.finished)} file(s)")
    if bad:
        lines += [f"not converted  {len(bad)} file(s)", *(f"  {problem}" for problem in sorted(bad))]
    nested = any(output.parent != out for output in (*plan.finished, *(job.output for job in plan.jobs)))
    applied = {
        "renamed_features": any(feature.name != feature.column.name for feature in layout.features),
        "truncate_and_slice": any(feature.length != (feature.column.width or 1) for feature in layout.features),
    }
    done = " and ".join(name for name, was_applied in applied.items() if was_applied)
    lines += [
        "",
        f"Of the data set's configuration these two lines change{f'; leave {done} out' if done else ''}:",
        f"  inputs: {out / '**/*.parquet' if nested else out}",
        f"  seg_dense_schema: {{schema_path: {out / 'schema.json'}}}",
    ]
    return "\n".join(lines) + "\n"


def _size_text(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


if __name__ == "__main__":
    from common.program import run

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    run(main, AFTER_INTERRUPT)
