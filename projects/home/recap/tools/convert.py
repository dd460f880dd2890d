"""Converts TFRecord files of tf.Examples to Parquet.

    python -m projects.home.recap.tools.convert --config YAML --out DIR

Owns the command line, the output directory and the worker processes. In the folder conversion/, columns.py chooses the
columns, files.py plans and converts files, and report.py shows progress and results. Every worker imports this module,
so modules that import torch are imported inside functions.
"""

if __name__ == "__main__" and not __package__:  # started by its path
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[4])

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
from common.files.abilities import why_locks_do_not_work
from common.files.atomic_directory import target_of
from common.process.arguments import at_least_1
from common.process.logging import setup_logging
from common.process.paths import user_path
from common.process.standard_streams import print_report
from common.reader.periods import DAY, HOUR, Period
from common.reader.vectors import Storage
from projects.home.recap.data.parquet import write_schema_json
from projects.home.recap.tools.conversion.examples import Absences
from projects.home.recap.tools.conversion.files import (
    DIFFERENT_FORMAT,
    ConversionPlan,
    FileConversion,
    OutputFormat,
    convert_file,
    plan_conversion,
)
from projects.home.recap.tools.conversion.report import (
    ConversionProgress,
    FileOutcome,
    report,
    warn_of_absent_features,
)
from projects.home.recap.tools.conversion.tfrecords import RecordError

logger = logging.getLogger(__name__)

PROGRAM = "python -m projects.home.recap.tools.convert"

_POLL_IN_S = 0.2


def main() -> int:
    """Run the command line: convert the files and print the report.

    Returns:
      The exit status: 0, or 1 if a file could not be converted.
    """
    setup_logging(rank=0)
    args = _parse_args()
    out: Path = args.out
    inputs, output_format, dated = _inputs_and_format(args)
    plan = plan_conversion(inputs, out, output_format)
    if dated is not None:
        _check_dated(plan, out, inputs, dated)
    with _claimed(out, output_format):
        _write_schema(out, output_format)
        _create_folders(out, plan)
        start = time.perf_counter()
        outcomes = _convert_all(plan, output_format, args.processes)
        seconds = time.perf_counter() - start
    warn_of_absent_features(outcomes)
    print_report(report(out, plan, output_format, outcomes, seconds, dated.key if dated is not None else None))
    return 1 if any(outcome.problem for outcome in outcomes) else 0


def _parse_args() -> argparse.Namespace:
    from common.process.program import ArgumentParser

    parser = ArgumentParser(
        prog=PROGRAM,
        description="Converts TFRecord files of tf.Examples, gzip'd or uncompressed, to Parquet (docs/convert.md).",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--config", type=user_path, metavar="YAML", help="configuration of a run, which describes the records"
    )
    source.add_argument(
        "--schema", metavar="JSON", help="segdense.json: convert all of its features under their own names"
    )
    parser.add_argument(
        "--set", action="append", metavar="KEY=VALUE", help="with --config: override a key; can be repeated"
    )
    parser.add_argument("--data_set", help="with --config: train_data (the default) or validation_data.NAME")
    parser.add_argument(
        "--inputs", help="glob pattern, file, or directory of TFRecord files (default: those of the data set)"
    )
    parser.add_argument("--out", required=True, type=user_path, metavar="DIR", help="directory for the Parquet files")
    parser.add_argument(
        "--processes",
        type=at_least_1,
        default=len(os.sched_getaffinity(0)),
        help="number of worker processes (default: one per core)",
    )
    parser.add_argument(
        "--lists",
        action="store_true",
        help="store vectors as lists, which any tool reads (default: as binary, which is faster to read)",
    )
    parser.add_argument(
        "--float16",
        action="store_true",
        help="store continuous and the embeddings as float16: half the size, 11 bits of precision, values up to 65504",
    )
    args = parser.parse_args()
    if args.schema is not None:
        if args.set is not None or args.data_set is not None:
            parser.error("--set and --data_set need --config; they cannot be combined with --schema")
        if args.inputs is None:
            parser.error("--schema needs --inputs")
    return args


class _DatedInputs(NamedTuple):
    """A data set's selection of files by date."""

    key: str
    """Configuration key that selects the files."""
    period: Period


def _inputs_and_format(args: argparse.Namespace) -> tuple[str, OutputFormat, _DatedInputs | None]:
    """Return the inputs, the format of the outputs, and the selection by date (None if the data set has none)."""
    from core.config import load_config_from_yaml
    from projects.home.recap.config import RecapConfig
    from projects.home.recap.tools.conversion.columns import features_of_config, features_of_schema

    vectors: Storage = "list" if args.lists else "binary"
    if args.schema is not None:
        return args.inputs, OutputFormat(features_of_schema(args.schema, args.float16), vectors), None
    config = load_config_from_yaml(RecapConfig, args.config, args.set or ())
    data_sets = config.data_sets()
    path = args.data_set or "train_data"
    if path not in data_sets:
        raise UserError(f"--data_set {path}: not in {args.config}, which has {', '.join(data_sets)}")
    data_set = data_sets[path]
    dated, inputs = None, data_set.inputs
    if (days := data_set.explicit_date_inputs) is not None:
        dated, inputs = _DatedInputs("explicit_date_inputs", DAY), days.data_root
    if (hours := data_set.explicit_datetime_inputs) is not None:
        dated, inputs = _DatedInputs("explicit_datetime_inputs", HOUR), hours.data_root
    assert inputs is not None  # the configuration requires one of the three
    return args.inputs or inputs, OutputFormat(features_of_config(data_set, path, args.float16), vectors), dated


def _check_dated(plan: ConversionPlan, out: Path, inputs: str, dated: _DatedInputs) -> None:
    """Raise UserError if no output would be in a folder that the data set selects by date."""
    outputs = [conversion.output for conversion in plan.conversions] + plan.finished
    if not any(dated.period.is_folder(output.relative_to(out).parent) for output in outputs):
        raise UserError(
            f"--inputs {inputs}: {dated.key} reads the folders {dated.period.example} below its data_root, but the "
            f"first file would be converted to {outputs[0]}. Set --inputs to the directory that contains the years"
        )


@contextlib.contextmanager
def _claimed(out: Path, output_format: OutputFormat) -> Iterator[None]:
    """Lock `out` against other conversions.

    Raises:
      UserError: `out` cannot be written, another conversion holds the lock, or `out` has files of another format.
    """
    try:
        target_of(out).mkdir(parents=True, exist_ok=True)
        if (problem := why_locks_do_not_work(out)) is not None:
            logger.warning("--out %s: never run two conversions here at a time, because locks fail: %s", out, problem)
        lock = (out / ".conversion").open("a+")
    except FileExistsError:
        raise UserError(f"--out {out} exists and is not a directory. Give another --out") from None
    except OSError as error:
        raise UserError(f"--out {out}: cannot write to this directory: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"--out {out}: another conversion is writing to this directory. Wait for it, or give another --out"
            ) from None
        except OSError:  # no locks here; warned above
            pass
        lock.seek(0)
        if (digest := lock.read()) not in ("", output_format.digest):
            if any(out.rglob("*.parquet")):
                raise UserError(f"--out {out}: its files were converted with {DIFFERENT_FORMAT}. Give another --out")
            (out / "schema.json").unlink(missing_ok=True)  # from a conversion that wrote nothing else
        if digest != output_format.digest:
            try:
                lock.truncate(0)
                lock.write(output_format.digest)
                lock.flush()
            except OSError as error:
                raise UserError(f"--out {out}: cannot write to this directory: {error.strerror}") from error
        yield


def _write_schema(out: Path, output_format: OutputFormat) -> None:
    path, partial = out / "schema.json", out / ".schema.json.partial"
    try:
        write_schema_json(partial, [feature.column for feature in output_format.features])
        if path.exists() and path.read_bytes() != partial.read_bytes():
            partial.unlink()
            raise UserError(f"{path} exists and does not match the columns of this conversion. Give another --out")
        partial.replace(path)
    except OSError as error:
        raise UserError(f"{path}: cannot write this file: {error.strerror}") from error


def _create_folders(out: Path, plan: ConversionPlan) -> None:
    """Create the folders of the outputs, so that one that cannot be created is reported before the work."""
    try:
        for folder in sorted({conversion.output.parent for conversion in plan.conversions}):
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: cannot create the folder {error.filename}: {error.strerror}") from error


class _SharedState(NamedTuple):
    """The state that the main process shares with its workers."""

    output_format: OutputFormat
    stop: ctypes.c_bool
    """Set to stop the workers. Has no lock, because a worker that is killed would never release it."""
    read: "Synchronized[int]"
    """Bytes of all sources that the workers have read or skipped so far."""
    rows: "Synchronized[int]"
    """Rows written so far."""


def _convert_all(plan: ConversionPlan, output_format: OutputFormat, processes: int) -> list[FileOutcome]:
    """Convert the planned files in at most `processes` worker processes.

    Raises:
      UserError: an output cannot be written, or a worker was killed.
    """
    if not plan.conversions:
        return []
    spawn = multiprocessing.get_context("spawn")
    shared = _SharedState(output_format, spawn.RawValue(ctypes.c_bool), spawn.Value("q"), spawn.Value("q"))
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # numpy would start a thread per core in every worker
    pool = ProcessPoolExecutor(min(processes, len(plan.conversions)), spawn, _start_worker, (shared,))
    outcomes: list[FileOutcome] = []
    conversions, pending = iter(plan.conversions), set[Future[FileOutcome]]()
    # Read without the locks of the values: a worker that is killed would never release them.
    progress = ConversionProgress(plan, lambda: (shared.read.get_obj().value, shared.rows.get_obj().value))
    try:
        while True:
            # Submit a few at a time, because wait() checks every pending future.
            while len(pending) < 2 * processes and (conversion := next(conversions, None)) is not None:
                with _interrupt_blocked():
                    pending.add(pool.submit(_convert, conversion))
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
            "a worker process was killed, possibly because memory ran out (if so, lower --processes). Run the same "
            "command again to convert the remaining files"
        ) from error
    finally:
        shared.stop.value = True
        pool.shutdown(cancel_futures=True)
        progress.close()


@contextlib.contextmanager
def _interrupt_blocked() -> Iterator[None]:
    """Block SIGINT in this thread, so that workers started inside never see Ctrl-C; deliver it here afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _StoppedError(Exception):
    """Raised in a worker when the main process stops, to abandon the current file."""


_shared: _SharedState


def _start_worker(shared: _SharedState) -> None:
    """Prepare a worker process to convert. The worker exits when the main process exits for any reason."""
    global _shared
    _shared = shared
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _convert(conversion: FileConversion) -> FileOutcome:
    """Convert a file in a worker that _start_worker() has prepared."""
    read = rows = 0

    def progress(more_read: int, more_rows: int) -> None:
        nonlocal read, rows
        if _shared.stop.value:
            raise _StoppedError
        read, rows = read + more_read, rows + more_rows
        _add(_shared.read, more_read)
        _add(_shared.rows, more_rows)

    try:
        absences = convert_file(conversion.source, conversion.output, _shared.output_format, progress)
        return FileOutcome(rows, conversion.output.stat().st_size, absences)
    except UnicodeEncodeError:
        return _failed(conversion, "the name is not UTF-8 and pyarrow cannot write such a file. Rename it")
    except RecordError as error:
        return _failed(conversion, str(error))
    finally:
        _add(_shared.read, conversion.size - read)


def _failed(conversion: FileConversion, problem: str) -> FileOutcome:
    kept = f" ({conversion.output} from an earlier conversion is kept)" if conversion.output.exists() else ""
    shown = f"{conversion.source}: {problem}{kept}".encode("utf-8", "replace").decode()
    return FileOutcome(0, 0, Absences(), shown)


def _add(counter: "Synchronized[int]", count: int) -> None:
    with counter.get_lock():
        counter.value += count


if __name__ == "__main__":
    from common.process.program import run

    run(main, "converts the remaining files", one_process=True)
