"""Converts MovieLens 100K to a table for the Heavy Ranker: ratings with the columns of their users and films.

    python -m projects.home.recap.tools.movielens --input DIR --out DIR

Owns the command line, the choice of columns, the split by time and the report. movielens_tables/files.py reads the
files, and movielens_tables/history.py computes features from earlier ratings.
"""

if __name__ == "__main__" and not __package__:  # started by its path
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[4])

import itertools
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tabulate import tabulate

from common.errors import UserError
from common.files.atomic_directory import atomic_directory
from common.process.paths import user_path
from common.process.program import ArgumentParser, run
from common.process.standard_streams import print_report
from common.reader.parquet_file import create_parquet
from projects.home.recap.tools.movielens_tables.files import GENRES, OCCUPATIONS, MovieLens, read_movielens
from projects.home.recap.tools.movielens_tables.history import HISTORY, history_features

DESCRIPTION = "Converts MovieLens 100K to a table for the Heavy Ranker."

TASKS = ("rating_at_least_4", "rating_is_5", "rating_at_most_2")
SPLITS = ("train", "validation", "test")

LAST_YEAR = 1998
"""Year of the last ratings of MovieLens 100K. The age of a film counts back from it, because the model takes logarithms
and the logarithms of 1950 and 1995 are almost equal."""

_ROW_GROUP_ROWS = 10_000


def movielens_table(data: MovieLens) -> pa.Table:
    """Return the ratings, in the order of `data`, with their users and films, as docs/movielens.md describes them.

    `user` and `item` count from 0 in the order of the ids. Unknown numbers are null.
    """
    user, item, rating = data.user, data.item, data.rating
    genres = [[GENRES[position] for position in np.flatnonzero(flags)] for flags in data.genres]
    history = history_features(user, item, rating, data.timestamp, data.genres)
    numbers = {"film_age": LAST_YEAR - data.year[item], **dict(zip(HISTORY, history.T, strict=True))}
    labels = (rating >= 4, rating == 5, rating <= 2)
    return pa.table(
        {
            "timestamp": pa.array(data.timestamp, pa.timestamp("s")),
            "user": user,
            "item": item,
            "rating": rating.astype(np.int8),
            "age": data.age[user],
            "gender": np.where(data.is_male[user], "M", "F"),
            "occupation": np.array(OCCUPATIONS)[data.occupation[user]],
            "genres": [genres[film] for film in item],
            **{name: pa.array(values.astype(np.float32), mask=np.isnan(values)) for name, values in numbers.items()},
            **{task: label.astype(np.int8) for task, label in zip(TASKS, labels, strict=True)},
        }
    )


def splits_by_time(num_rows: int) -> dict[str, slice]:
    """Return the first 80% of the rows, the next 10% and the last 10%, named by SPLITS."""
    bounds = [0, num_rows * 8 // 10, num_rows * 9 // 10, num_rows]
    return {split: slice(*ends) for split, ends in zip(SPLITS, itertools.pairwise(bounds), strict=True)}


def prepare(directory: Path, out: Path) -> dict[str, pa.Table]:
    """Convert the MovieLens files in `directory` and write the table to `out`, which appears when it is complete.

    The bytes depend only on the ratings, users and films, not on their order in the files or on the layout.

    Returns:
      The rows of each split.

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
        splits = {split: table[rows] for split, rows in splits_by_time(table.num_rows).items()}
        for split, rows in splits.items():
            with create_parquet(partial / f"{split}.parquet", rows.schema, compression="zstd") as file:
                file.write_table(rows, row_group_size=_ROW_GROUP_ROWS)
    return splits


def report(out: Path, splits: dict[str, pa.Table]) -> str:
    """Return the base rates and row counts of the splits, and the numbers of users and films."""
    shares = [[task, *(pc.mean(rows[task]).as_py() for rows in splits.values())] for task in TASKS]
    table = tabulate(shares, headers=["task", *SPLITS], floatfmt=".4f")
    counts = ", ".join(f"{rows.num_rows} {split}" for split, rows in splits.items())
    users, items = (max(pc.max(rows[name]).as_py() for rows in splits.values()) + 1 for name in ("user", "item"))
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
