"""TFRecord files of tf.Examples to Parquet: `python -m projects.home.recap.tools.convert --config YAML --out DIR`.

Owns the command line and the processes. Which features become which columns is decided in conversion_plan.py, how a
file is converted in conversion.py, what is shown in conversion_report.py. Every process that converts imports this
module anew, so what imports torch is imported within functions.
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
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import NamedTuple

from common.errors import UserError
from common.process.arguments import at_least_1
from common.process.logging import setup_logging
from common.process.paths import user_path
from common.reader.dated_folders import DAY, HOUR, Period
from common.reader.vectors import Storage
from projects.home.recap.data.parquet import write_schema_json
from projects.home.recap.tools.conversion.conversion import OTHER_LAYOUT, Job, Layout, Plan, convert_file, plan_jobs
from projects.home.recap.tools.conversion.examples import Absences
from projects.home.recap.tools.conversion.report import Outcome, Progress, report, warn_of_absent_features
from projects.home.recap.tools.conversion.tfrecords import RecordError

logger = logging.getLogger(__name__)

PROGRAM = "python -m projects.home.recap.tools.convert"
AFTER_INTERRUPT = "continues with the files that are left"

_POLL_IN_S = 0.2


def main() -> int:
    """Reads the command line, converts, and tells what was made.

    Returns:
      the exit status: 0, or 1 where a file could not be converted.
    """
    setup_logging(rank=0)
    args = _parse_args()
    out = user_path(args.out)
    inputs, layout, dated = _what_to_convert(args)
    plan = plan_jobs(inputs, out, layout)
    if dated is not None:
        _check_dated(plan, out, inputs, dated)
    with _claimed(out, layout):
        _write_schema(out, layout)
        start = time.perf_counter()
        outcomes = _convert_all(plan, layout, args.processes)
        seconds = time.perf_counter() - start
    warn_of_absent_features(outcomes)
    sys.stdout.write(report(out, plan, layout, outcomes, seconds, dated.key if dated is not None else None))
    return 1 if any(outcome.problem for outcome in outcomes) else 0


def _parse_args() -> argparse.Namespace:
    from common.process.program import ArgumentParser

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
        "--processes", type=at_least_1, default=len(os.sched_getaffinity(0)), help="one per core if left out"
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


class _Dated(NamedTuple):
    """How a data set looks for files by date."""

    key: str
    """Of the configuration."""
    period: Period


def _what_to_convert(args: argparse.Namespace) -> tuple[str, Layout, _Dated | None]:
    """The files, as --inputs names them, what becomes of their records, and how these are looked for if by date."""
    from core.config import load_config_from_yaml
    from projects.home.recap.config import RecapConfig
    from projects.home.recap.tools.conversion.plan import features_of_config, features_of_schema

    vectors: Storage = "list" if args.lists else "binary"
    if args.schema is not None:
        return args.inputs, Layout(features_of_schema(args.schema, args.float16), vectors), None
    config = load_config_from_yaml(RecapConfig, args.config, args.set or ())
    data_sets = config.data_sets()
    path = args.data_set or "train_data"
    if path not in data_sets:
        raise UserError(f"--data_set {path}: not in {args.config}, which has {', '.join(data_sets)}")
    data_set = data_sets[path]
    dated, inputs = None, data_set.inputs
    if (days := data_set.explicit_date_inputs) is not None:
        dated, inputs = _Dated("explicit_date_inputs", DAY), days.data_root
    if (hours := data_set.explicit_datetime_inputs) is not None:
        dated, inputs = _Dated("explicit_datetime_inputs", HOUR), hours.data_root
    assert inputs is not None  # one of the three is
    return args.inputs or inputs, Layout(features_of_config(data_set, path, args.float16), vectors), dated


def _check_dated(plan: Plan, out: Path, inputs: str, dated: _Dated) -> None:
    """Raises UserError where no output would be in a folder that a data set by date looks into."""
    outputs = [job.output for job in plan.jobs] + plan.finished
    if not any(dated.period.is_folder(output.relative_to(out).parent) for output in outputs):
        raise UserError(
            f"--inputs {inputs}: {dated.key} looks into folders {dated.period.example} below its data_root, but the "
            f"first file would become {outputs[0]}; let --inputs be the directory that the years are in"
        )


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
            if any(out.rglob("*.parquet")):
                raise UserError(f"--out {out}: what is there was made with {OTHER_LAYOUT}; give another --out")
            (out / "schema.json").unlink(missing_ok=True)  # of a conversion that made nothing else
        if found != layout.digest:
            try:
                lock.truncate(0)
                lock.write(layout.digest)
                lock.flush()
            except OSError as error:
                raise UserError(f"--out {out}: can't be written: {error.strerror}") from error
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
    # Not by the values' locks, for the same reason as with stop.
    progress = Progress(plan, lambda: (shared.read.get_obj().value, shared.rows.get_obj().value))
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
        absences = convert_file(job.source, job.output, _shared.layout, progress)
        return Outcome(rows, job.output.stat().st_size, absences)
    except UnicodeEncodeError:
        return _bad(job, "pyarrow writes no file whose name is not UTF-8; rename it")
    except RecordError as error:
        return _bad(job, str(error))
    finally:
        _add(_shared.read, job.size - read)


def _bad(job: Job, problem: str) -> Outcome:
    older = f" ({job.output}, made from it before, stays)" if job.output.exists() else ""
    shown = f"{job.source}: {problem}{older}".encode("utf-8", "replace").decode()
    return Outcome(0, 0, Absences(), shown)


def _add(counter: "Synchronized[int]", count: int) -> None:
    with counter.get_lock():
        counter.value += count


if __name__ == "__main__":
    from common.process.program import run

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    run(main, AFTER_INTERRUPT)
