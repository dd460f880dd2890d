"""Generates a click log, an ordinary table: `python -m projects.home.recap.tools.click_log --out FILE`.

Owns the command line, the file and the report. Rows come from synthetic/clicks.py.
"""

if __name__ == "__main__" and not __package__:  # started by its path
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[4])

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
from numpy.typing import NDArray
from tabulate import tabulate
from tqdm import tqdm

from common.errors import UserError
from common.files.durable import sync_directory, sync_file
from common.process.arguments import at_least_1, seed_number
from common.process.paths import user_path
from common.process.program import ArgumentParser, run
from common.process.standard_streams import print_report
from common.reader.parquet_file import create_parquet
from projects.home.recap.tools.synthetic.clicks import LABELS, SCHEMA, draw_clicks

DESCRIPTION = (
    "Generates a click log: a table of strings, numbers, lists and timestamps with two labels, sorted by time."
)
NUM_EXAMPLES = 200_000
SUFFIXES = (".csv", ".csv.gz", ".parquet")

Write = Callable[[pa.Table], None]


def generate(out: Path, seed: int = 0, num_examples: int = NUM_EXAMPLES) -> dict[str, tuple[float, float]]:
    """Write a click log to the file `out`, which appears when it is complete.

    The bytes depend only on the arguments. The rows do not depend on the format, which is that of the file's suffix.

    Args:
      out: file to create, with one of SUFFIXES.
      seed: seed of users, items, rows and labels.
      num_examples: number of rows.

    Returns:
      The base rate of each label and the AUC of the probabilities that it was drawn from, which no model surpasses but
      by chance. It is NaN if all rows have the same label.

    Raises:
      UserError: `out` exists, has another suffix, or cannot be written.
    """
    labels: list[NDArray[np.bool_]] = []
    probabilities: list[NDArray[np.float32]] = []
    progress = tqdm(total=num_examples, unit=" rows", disable=not sys.stderr.isatty())
    with progress, _created(out) as partial, _writer(partial, out.name) as write:
        for rows, chances in draw_clicks(seed, num_examples):
            write(rows)
            labels.append(np.stack([rows[label].to_numpy() == 1 for label in LABELS], axis=1))
            probabilities.append(chances.astype(np.float32))
            progress.update(rows.num_rows)
    label, probability = np.concatenate(labels), np.concatenate(probabilities)
    return {
        name: (float(label[:, index].mean()), best_auc(label[:, index], probability[:, index]))
        for index, name in enumerate(LABELS)
    }


def best_auc(labels: NDArray[np.bool_], probabilities: NDArray[Any]) -> float:
    """Return the area under the ROC curve; NaN if all labels are equal. Equal probabilities count in any order."""
    ranks = np.flatnonzero(labels[np.argsort(probabilities, kind="stable")])
    num_pairs = len(ranks) * (len(labels) - len(ranks))
    return float((ranks - np.arange(len(ranks))).sum() / num_pairs) if num_pairs else float("nan")


@contextlib.contextmanager
def _created(out: Path) -> Iterator[Path]:
    """Yield the path of a hidden file, which becomes `out` when the block ends without an error."""
    if not out.name.endswith(SUFFIXES):
        raise UserError(f"--out {out}: the name must end with {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")
    partial = out.with_name(f".{out.name[:200]}.partial")
    try:
        if out.exists():
            raise UserError(f"--out {out} already exists; remove it or choose another name")
        out.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        sync_file(partial)
        partial.replace(out)
        sync_directory(out.parent)
    except OSError as error:
        raise UserError(
            f"--out {out}: cannot write this file: {error.strerror or error}; choose another name"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


@contextlib.contextmanager
def _writer(path: Path, name: str) -> Iterator[Write]:
    """Yield a function that appends rows to a file in the format of the suffix of `name`."""
    if name.endswith(".parquet"):
        with create_parquet(path, SCHEMA, compression="zstd") as file:
            yield file.write_table
        return
    schema = pa.schema([pa.field(field.name, _csv_type(field.type)) for field in SCHEMA])
    with (
        pa.output_stream(path, compression="gzip" if name.endswith(".gz") else None) as stream,
        pyarrow.csv.CSVWriter(
            stream, schema, write_options=pyarrow.csv.WriteOptions(quoting_style="needed")
        ) as csv_file,
    ):
        yield lambda rows: csv_file.write_table(_with_text(rows, schema))


def _csv_type(kind: pa.DataType) -> pa.DataType:
    return pa.string() if pa.types.is_list(kind) else kind


def _with_text(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """Replace lists by their JSON."""
    return pa.table([_json(rows[field.name]) for field in SCHEMA], schema=schema)


def _json(column: pa.ChunkedArray) -> pa.Array:
    values = column.combine_chunks()
    if not pa.types.is_list(values.type):
        return values
    quote = '"' if pa.types.is_string(values.type.value_type) else ""
    inside = pc.binary_join(pc.cast(values, pa.list_(pa.string())), f"{quote},{quote}")
    if quote:
        is_filled = pc.greater(pc.list_value_length(values), 0)
        inside = pc.if_else(is_filled, pc.binary_join_element_wise(quote, inside, quote, ""), inside)
    return pc.binary_join_element_wise("[", inside, "]", "")


def report(out: Path, num_examples: int, figures: dict[str, tuple[float, float]]) -> str:
    """Return the base rates, the best possible AUCs, and the size of the file."""
    table = tabulate(
        [[label, *values] for label, values in figures.items()],
        headers=["label", "base rate", "best possible AUC"],
        floatfmt=("", ".4f", ".4f"),
    )
    return f"{table}\n{out}: {num_examples} rows, {out.stat().st_size / 1e6:.1f} MB"


def main() -> int:
    """Run the command line and return the exit status.

    Raises:
      UserError: an option is invalid, or the file cannot be written.
    """
    parser = ArgumentParser(prog="python -m projects.home.recap.tools.click_log", description=DESCRIPTION)
    parser.add_argument(
        "--out", type=user_path, required=True, help=f"file to create, which ends with {', '.join(SUFFIXES)}"
    )
    parser.add_argument("--seed", type=seed_number, default=0, help="seed of users, items, rows and labels")
    parser.add_argument(
        "--num_examples", type=at_least_1, default=NUM_EXAMPLES, help="number of rows (default: %(default)s)"
    )
    options = parser.parse_args()
    figures = generate(options.out, options.seed, options.num_examples)
    print_report(report(options.out, options.num_examples, figures) + "\n")
    return 0


if __name__ == "__main__":
    run(main, "starts over", one_process=True)
