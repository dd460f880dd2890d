"""Generates the default data: `python -m projects.home.recap.tools.generate --out DIR`.

Owns the command line, the number of rows and files, the drawing of labels, and the report. Features come from
synthetic/population.py, label probabilities from synthetic/teacher.py, and the columns from data/parquet.py.
"""

if __name__ == "__main__" and not __package__:  # started by its path
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[4])

import functools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tabulate import tabulate
from tqdm import tqdm

from common.files.atomic_directory import atomic_directory
from common.files.table_writer import TableWriter
from common.process.arguments import at_least_1, seed_number
from common.process.paths import user_path
from common.process.program import ArgumentParser, run
from common.process.standard_streams import print_report
from projects.home.recap.data.parquet import TASKS, TEACHER_PREFIX, Widths, recap_columns, write_schema_json
from projects.home.recap.tools.synthetic.population import Population, draw_impressions, make_population
from projects.home.recap.tools.synthetic.teacher import teacher_probabilities

DESCRIPTION = "Generates the default data of the Heavy Ranker: synthetic impressions with ten labels each."
SPLITS = ("train", "validation")


class Preset(NamedTuple):
    """The widths of the features, the default numbers of rows, and the sizes of row groups and files."""

    widths: Widths
    num_examples: tuple[int, int]
    """Rows of the train and validation splits."""
    row_group_size: int
    rows_per_file: int


PRESETS = {
    "default": Preset(Widths(48, 16, 4, 16), (300_000, 50_000), 4096, 65_536),
    "production": Preset(Widths(6000, 512, 320, 200), (4096, 1024), 256, 4096),
}


class Tally(NamedTuple):
    """Sums over rows: per task [tasks], the positive labels and the teacher's cross entropy in nats."""

    num_rows: int
    positives: NDArray[np.int64]
    cross_entropy: NDArray[np.float64]

    def plus(self, other: "Tally") -> "Tally":
        """Return the sums over the rows of both."""
        return Tally(
            self.num_rows + other.num_rows,
            self.positives + other.positives,
            self.cross_entropy + other.cross_entropy,
        )

    def teacher_rce(self) -> NDArray[np.float64]:
        """Return 100 * (1 - CE(teacher) / CE(constant base rate)) [tasks]; NaN if all labels of a task are equal."""
        rate = self.positives / self.num_rows
        with np.errstate(divide="ignore", invalid="ignore"):
            constant = -(rate * np.log(rate) + (1.0 - rate) * np.log1p(-rate))
            return np.asarray(100.0 * (1.0 - self.cross_entropy / self.num_rows / constant))


def generate(out: Path, preset: Preset, seed: int, num_examples: Sequence[int]) -> dict[str, Tally]:
    """Write the train and validation splits and schema.json to `out`, which appears when it is complete.

    The bytes depend only on the arguments. Each file is drawn from (seed, split, index of the file), one row group at a
    time, so a smaller `num_examples` yields a prefix of the same rows.

    Args:
      out: directory to create.
      preset: widths and sizes.
      seed: seed of users, authors, rows and labels.
      num_examples: number of train rows and of validation rows.

    Returns:
      The sums over the rows of each split.

    Raises:
      UserError: `out` cannot be written, or exists and is not an empty directory.
    """
    with atomic_directory(out) as partial:
        return _write_splits(partial, preset, seed, num_examples)


def _write_splits(out: Path, preset: Preset, seed: int, num_examples: Sequence[int]) -> dict[str, Tally]:
    people = make_population(seed, preset.widths)
    columns = recap_columns(preset.widths, ids=True, teacher=True)
    tallies = {}
    with tqdm(total=sum(num_examples), unit=" rows", disable=not sys.stderr.isatty()) as progress:
        for split, num_rows in zip(SPLITS, num_examples, strict=True):
            (out / split).mkdir(parents=True)
            parts = []
            for file_index, first_row in enumerate(range(0, num_rows, preset.rows_per_file)):
                path = out / split / f"part-{file_index:05d}.parquet"
                num_file_rows = min(preset.rows_per_file, num_rows - first_row)
                with TableWriter(path, columns, preset.row_group_size) as writer:
                    for rows in _draw_file(people, preset, seed, split, file_index, num_file_rows):
                        writer.write(rows)
                        parts.append(_tally(rows))
                        progress.update(parts[-1].num_rows)
                if progress.disable:
                    sys.stderr.write(f"{split}: {first_row + num_file_rows} of {num_rows} rows\n")
            tallies[split] = functools.reduce(Tally.plus, parts)
    write_schema_json(out / "schema.json", columns)
    return tallies


def _draw_file(
    people: Population, preset: Preset, seed: int, split: str, file_index: int, num_rows: int
) -> Iterator[dict[str, NDArray[Any]]]:
    """Yield the columns of a file by name, one row group at a time."""
    split_index = SPLITS.index(split)
    rng = np.random.default_rng([seed, 1 + split_index, file_index])
    first_id = (1 + split_index) * 10**12 + file_index * preset.rows_per_file
    for start in range(0, num_rows, preset.row_group_size):
        size = preset.row_group_size
        rows = draw_impressions(rng, people, preset.widths, size)
        rows["meta__tweet_id"] = np.arange(first_id + start, first_id + start + size)
        probabilities = teacher_probabilities(rows)
        labels = rng.random(probabilities.shape) < probabilities
        for index, task in enumerate(TASKS):
            rows[task] = labels[:, index].astype(np.int8)
            rows[TEACHER_PREFIX + task] = probabilities[:, index]
        yield {name: values[: num_rows - start] for name, values in rows.items()}


def _tally(rows: dict[str, NDArray[Any]]) -> Tally:
    labels = np.stack([rows[task] for task in TASKS], axis=1)
    probabilities = np.stack([rows[TEACHER_PREFIX + task] for task in TASKS], axis=1).astype(np.float64)
    likelihood = np.where(labels == 1, probabilities, 1.0 - probabilities)
    return Tally(len(labels), labels.sum(axis=0, dtype=np.int64), -np.log(likelihood).sum(axis=0))


def report(out: Path, tallies: dict[str, Tally]) -> str:
    """Return a table of base rates and the teacher's RCE for each task, and the size of the data."""
    train, validation = tallies["train"], tallies["validation"]
    columns = zip(
        TASKS,
        train.positives / train.num_rows,
        validation.positives / validation.num_rows,
        train.teacher_rce(),
        validation.teacher_rce(),
        strict=True,
    )
    files = [path for path in out.rglob("*") if path.is_file()]
    megabytes = sum(path.stat().st_size for path in files) / 1e6
    table = tabulate(
        [[None if value != value else value for value in row] for row in columns],
        headers=["task", "base rate\ntrain", "\nvalidation", "teacher's RCE\ntrain", "\nvalidation"],
        floatfmt=("", ".5f", ".5f", ".2f", ".2f"),
        missingval="-",
    )
    counts = f"{train.num_rows} train and {validation.num_rows} validation rows"
    return f"{table}\n{out}: {counts} in {len(files)} files, {megabytes:.1f} MB"


def main() -> int:
    """Run the command line and return the exit status.

    Raises:
      UserError: an option is invalid, or a file cannot be read or written.
    """
    parser = ArgumentParser(prog="python -m projects.home.recap.tools.generate", description=DESCRIPTION)
    parser.add_argument("--out", type=user_path, required=True, help="directory to create; must be empty if it exists")
    parser.add_argument("--seed", type=seed_number, default=0, help="seed of users, authors, rows and labels")
    parser.add_argument(
        "--preset", choices=PRESETS, default="default", help="widths: %(choices)s (default: %(default)s)"
    )
    parser.add_argument(
        "--num_train_examples", type=at_least_1, help="number of train rows (default: set by the preset)"
    )
    parser.add_argument(
        "--num_validation_examples", type=at_least_1, help="number of validation rows (default: set by the preset)"
    )
    options = parser.parse_args()
    preset = PRESETS[options.preset]
    requested = (options.num_train_examples, options.num_validation_examples)
    num_examples = [given or default for given, default in zip(requested, preset.num_examples, strict=True)]
    tallies = generate(options.out, preset, options.seed, num_examples)
    print_report(report(options.out, tallies) + "\n")
    return 0


if __name__ == "__main__":
    run(main, "starts over", one_process=True)
