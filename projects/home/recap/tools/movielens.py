"""Converts MovieLens 100K to tables for the Heavy Ranker: an ordinary one, and one of vectors.

    python -m projects.home.recap.tools.movielens --input DIR --out DIR

Owns the command line, the choice of columns, the split by time and the report. movielens_tables/files.py reads the
files, movielens_tables/history.py computes features from earlier ratings, and data/parquet.py writes the schema.
"""

if __name__ == "__main__" and not __package__:  # started by its path
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[4])

import itertools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from tabulate import tabulate

from common.errors import UserError
from common.files.atomic_directory import atomic_directory
from common.files.table_writer import TableWriter
from common.process.paths import user_path
from common.process.program import ArgumentParser, run
from common.process.standard_streams import print_report
from common.reader.parquet_file import create_parquet
from projects.home.recap.data.parquet import Widths, recap_columns, write_schema_json
from projects.home.recap.tools.movielens_tables.files import GENRES, OCCUPATIONS, MovieLens, read_movielens
from projects.home.recap.tools.movielens_tables.history import HISTORY, history_features

DESCRIPTION = "Converts MovieLens 100K to a table for the Heavy Ranker."

TASKS = ("rating_at_least_4", "rating_is_5", "rating_at_most_2")
SPLITS = ("train", "validation", "test")

CONTINUOUS = ("film_age", "age", *HISTORY)
"""The years from the film's release to LAST_YEAR (NaN if unknown), the user's age in years, and the history.

Here and in BINARY, the features that a model can do without come last, so that `truncate_and_slice` can drop them."""

LAST_YEAR = 1998
"""Year of the last ratings of MovieLens 100K. The age of a film counts back from it, because the model takes logarithms
and the logarithms of 1950 and 1995 are almost equal."""

AGES = (18, 25, 35, 45, 50, 56)
"""Lower bounds of the age groups of GroupLens's later data sets. The first group has everyone below the first bound."""

BINARY = (*GENRES, "is_male", *(f"age_group_{group}" for group in range(len(AGES) + 1)), *OCCUPATIONS)

DISCRETE = ("user", "item", "gender", "age_group", "occupation", "year")
"""Integers from 0: user and film in the order of their ids, 1 for a male user, the age group, the position in
OCCUPATIONS, and the years from FIRST_YEAR to the film's release (0 if unknown)."""

FIRST_YEAR = 1900

_ROW_GROUP_ROWS = 10_000


def movielens_table(data: MovieLens) -> dict[str, NDArray[Any]]:
    """Return the ratings, in the order of `data`, as the columns that recap_columns() defines.

    Returns:
      The columns by name: `continuous` float32 [ratings, CONTINUOUS], `binary` uint8 [ratings, BINARY], `discrete`
      int64 [ratings, DISCRETE], and each of TASKS int8 [ratings].
    """
    user, item, rating = data.user, data.item, data.rating
    age_group = np.searchsorted(AGES, data.age, side="right")
    year = np.nan_to_num(np.maximum(data.year - FIRST_YEAR, 0), nan=0).astype(np.int64)
    history = history_features(user, item, rating, data.timestamp, data.genres)
    side = np.stack([LAST_YEAR - data.year[item], data.age[user]], axis=1)
    binary = [
        data.genres[item],
        data.is_male[user, None],
        np.arange(len(AGES) + 1) == age_group[user, None],
        np.arange(len(OCCUPATIONS)) == data.occupation[user, None],
    ]
    discrete = [user, item, data.is_male[user], age_group[user], data.occupation[user], year[item]]
    labels = (rating >= 4, rating == 5, rating <= 2)
    return {
        "continuous": np.concatenate([side, history], axis=1).astype(np.float32),
        "binary": np.concatenate(binary, axis=1).astype(np.uint8),
        "discrete": np.stack(discrete, axis=1).astype(np.int64),
        **{task: label.astype(np.int8) for task, label in zip(TASKS, labels, strict=True)},
    }


def joined_table(data: MovieLens, table: dict[str, NDArray[Any]]) -> pa.Table:
    """Return the ratings with their users and films as an ordinary table: one named column per value, null if unknown.

    Args:
      data: the ratings, users and films.
      table: what movielens_table() returns for them.
    """
    genres = [[GENRES[position] for position in np.flatnonzero(flags)] for flags in data.genres]
    numbers = dict(zip(CONTINUOUS, table["continuous"].T, strict=True))
    return pa.table(
        {
            "timestamp": pa.array(data.timestamp, pa.timestamp("s")),
            "user": data.user,
            "item": data.item,
            "rating": data.rating.astype(np.int8),
            "gender": np.where(data.is_male[data.user], "M", "F"),
            "occupation": np.array(OCCUPATIONS)[data.occupation[data.user]],
            "genres": [genres[item] for item in data.item],
            **{name: pa.array(values, mask=np.isnan(values)) for name, values in numbers.items()},
            **{task: table[task] for task in TASKS},
        }
    )


def splits_by_time(num_rows: int) -> dict[str, slice]:
    """Return the first 80% of the rows, the next 10% and the last 10%, named by SPLITS."""
    bounds = [0, num_rows * 8 // 10, num_rows * 9 // 10, num_rows]
    return {split: slice(*ends) for split, ends in zip(SPLITS, itertools.pairwise(bounds), strict=True)}


def prepare(directory: Path, out: Path) -> dict[str, dict[str, NDArray[Any]]]:
    """Convert the MovieLens files in `directory` and write the table to `out`, which appears when it is complete.

    The bytes depend only on the ratings, users and films, not on their order in the files or on the layout.

    Returns:
      The columns of each split.

    Raises:
      UserError: the files are invalid (see read_movielens) or have fewer than 10 ratings; or `out` cannot be written,
        or exists and is not an empty directory.
    """
    with atomic_directory(out) as partial:
        data = read_movielens(directory)
        if len(data.rating) < 10:
            raise UserError(
                f"--input {directory}: {len(data.rating)} rating(s) found, but the 80/10/10 split needs at least 10"
            )
        table = movielens_table(data)
        joined = joined_table(data, table)
        columns = recap_columns(Widths(len(CONTINUOUS), len(BINARY), len(DISCRETE)), TASKS)
        splits = {}
        (partial / "joined").mkdir()
        for split, rows in splits_by_time(len(data.rating)).items():
            splits[split] = {name: values[rows] for name, values in table.items()}
            (partial / split).mkdir()
            with TableWriter(partial / split / "part-00000.parquet", columns) as writer:
                writer.write(splits[split])
            with create_parquet(partial / "joined" / f"{split}.parquet", joined.schema, compression="zstd") as file:
                file.write_table(joined[rows], row_group_size=_ROW_GROUP_ROWS)
        write_schema_json(partial / "schema.json", columns)
    return splits


def report(out: Path, splits: dict[str, dict[str, NDArray[Any]]]) -> str:
    """Return the base rates and row counts of the splits, and the numbers of users and films."""
    shares = [[task, *(rows[task].mean() for rows in splits.values())] for task in TASKS]
    table = tabulate(shares, headers=["task", *SPLITS], floatfmt=".4f")
    counts = ", ".join(f"{len(rows['discrete'])} {split}" for split, rows in splits.items())
    users, items = (max(int(rows["discrete"][:, index].max()) for rows in splits.values()) + 1 for index in (0, 1))
    return f"base rates\n{table}\n{out}: {counts} rows of {users} users and {items} films"


def main() -> int:
    """Run the command line and return the exit status.

    Raises:
      UserError: an option is invalid, or a file cannot be read or written.
    """
    parser = ArgumentParser(prog="python -m projects.home.recap.tools.movielens", description=DESCRIPTION)
    parser.add_argument(
        "--input",
        type=user_path,
        required=True,
        help="directory with u.data, u.user and u.item, or with ml-100k.inter, .user and .item",
    )
    parser.add_argument("--out", type=user_path, required=True, help="directory to create; must be empty if it exists")
    options = parser.parse_args()
    splits = prepare(options.input, options.out)
    print_report(report(options.out, splits) + "\n")
    return 0


if __name__ == "__main__":
    run(main, "starts over", one_process=True)
