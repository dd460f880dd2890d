import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from common.errors import UserError
from projects.home.recap.tools.movielens import main, prepare
from projects.home.recap.tools.movielens_tables.history import HISTORY
from tests.projects.home.recap.tools.test_generate import contents

USERS = [
    (1, 24, "M", "technician"),
    (3, 53, "F", "other"),
    (7, 17, "F", "student"),
    (20, 56, "M", "student"),
    (100, 30, "M", "other"),
]
FLAGS = {  # flags of the 19 genres, in the order of u.item
    "unknown": "1|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0",
    "Animation Children's Comedy": "0|0|0|1|1|1|0|0|0|0|0|0|0|0|0|0|0|0|0",
    "Action Drama War": "0|1|0|0|0|0|0|0|1|0|0|0|0|0|0|0|0|1|0",
    "Film-Noir Sci-Fi": "0|0|0|0|0|0|0|0|0|0|1|0|0|0|0|1|0|0|0",
}
# id; title and date in u.item; title and year in ml-100k.item; genres; the resulting year
ITEMS: list[tuple[int, str, str, str, str, str, float]] = [
    (1, "Toy Story (1995)", "01-Jan-1995", "Toy Story", "1995", "Animation Children's Comedy", 1995),
    (22, "Braveheart (1995)", "16-Feb-1996", "Braveheart", "1995", "Action Drama War", 1995),
    (90, "Alphaville, \x85 caf\xe9", "4-Feb-1965", "Alphaville, \x85 caf\xe9", "1965", "Film-Noir Sci-Fi", 1965),
    (267, "unknown", "", "unkonwn", "unkonwn", "unknown", np.nan),
    *(
        (1000 + k, f"Film {k} ({1950 + k})", "", f"Film {k}", f"{1950 + k}", "Action Drama War", 1950 + k)
        for k in range(8)
    ),
    (1412, "Land III (1995) (V)", "01-Jan-1995", "Land III (1995)", "V", "Animation Children's Comedy", 1995),
]


def ratings() -> list[tuple[int, int, int, int]]:
    """Return 50 unordered ratings (user, film, stars, second), some with the same time."""
    rng = np.random.default_rng(0)
    pairs = [(user[0], item[0]) for user in USERS for item in ITEMS]
    chosen = rng.choice(len(pairs), 50, replace=False)
    return [(*pairs[k], int(rng.integers(1, 6)), 881250949 + 1000 * int(rng.integers(0, 25))) for k in chosen]


RATINGS = ratings()


def write_grouplens(directory: Path) -> Path:
    directory.mkdir()
    (directory / "u.data").write_text("".join("\t".join(map(str, row)) + "\n" for row in RATINGS))
    (directory / "u.user").write_text("".join("|".join(map(str, (*user, "85711"))) + "\n" for user in USERS))
    lines = [f"{i}|{title}|{date}||http://x|{FLAGS[genres]}\n" for i, title, date, _, _, genres, _ in ITEMS]
    (directory / "u.item").write_text("".join(lines), encoding="latin-1")
    return directory


def write_with_header(directory: Path) -> Path:
    """Write the same data in the other layout, with the lines in another order."""
    directory.mkdir()
    rows = [("user_id:token", "item_id:token", "rating:float", "timestamp:float"), *reversed(RATINGS)]
    (directory / "ml-100k.inter").write_text("".join("\t".join(map(str, row)) + "\n" for row in rows))
    users = ["user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n"]
    users += ["\t".join(map(str, user)) + "\t85711\n" for user in reversed(USERS)]
    (directory / "ml-100k.user").write_text("".join(users))
    items = ["item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"]
    items += [f"{i}\t{title}\t{year}\t{genres}\n" for i, _, _, title, year, genres, _ in reversed(ITEMS)]
    (directory / "ml-100k.item").write_text("".join(items), encoding="utf-8")
    return directory


LAYOUTS = {"grouplens": write_grouplens, "with_header": write_with_header}
layout = pytest.mark.parametrize("write", LAYOUTS.values(), ids=LAYOUTS)


SPLITS = ("train", "validation", "test")


def read_splits(directory: Path) -> pa.Table:
    """Return the rows of the three splits, concatenated."""
    return pa.concat_tables(pq.read_table(directory / f"{split}.parquet") for split in SPLITS)


def history(table: pa.Table) -> NDArray[np.float32]:
    """Return the columns of the history, [rows, HISTORY]."""
    return np.stack([table[name].to_numpy() for name in HISTORY], axis=1)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    """Return the rows of the three splits, concatenated."""
    directory = tmp_path_factory.mktemp("movielens")
    prepare(write_grouplens(directory / "input"), directory / "out")
    return read_splits(directory / "out")


EXPECTED = sorted(RATINGS, key=lambda row: (row[3], row[0], row[1]))
USER_IDS, ITEM_IDS = [user[0] for user in USERS], [item[0] for item in ITEMS]


def test_the_bytes_depend_neither_on_the_layout_nor_on_the_order_of_lines(tmp_path):
    for name, write in LAYOUTS.items():
        directory = write(tmp_path / f"{name}-input")
        if name == "with_header":  # editors on Windows begin a file with a byte order mark
            for path in directory.iterdir():
                path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
        prepare(directory, tmp_path / name)
    assert contents(tmp_path / "grouplens") == contents(tmp_path / "with_header")
    assert sorted(contents(tmp_path / "grouplens")) == [f"{split}.parquet" for split in sorted(SPLITS)]


def test_rows_are_sorted_by_time_user_and_film(table):
    np.testing.assert_array_equal(
        table["timestamp"].to_numpy().astype("datetime64[s]").astype(int), [row[3] for row in EXPECTED]
    )
    assert [USER_IDS[user] for user in table["user"].to_pylist()] == [row[0] for row in EXPECTED]
    assert [ITEM_IDS[item] for item in table["item"].to_pylist()] == [row[1] for row in EXPECTED]


def test_the_rows_are_split_80_10_10_in_order(tmp_path, table):
    splits = prepare(write_grouplens(tmp_path / "input"), tmp_path / "out")
    assert len(RATINGS) == 50
    assert {split: rows.num_rows for split, rows in splits.items()} == {"train": 40, "validation": 5, "test": 5}
    for split, rows in splits.items():
        written = pq.read_table(tmp_path / f"out/{split}.parquet")
        assert written.equals(rows.cast(written.schema)), "Parquet has no timestamps in seconds"
    assert read_splits(tmp_path / "out").equals(table)


def test_labels_follow_the_stars(table):
    stars = np.array([row[2] for row in EXPECTED])
    assert set(stars) == {1, 2, 3, 4, 5}
    np.testing.assert_array_equal(table["rating"], stars)
    np.testing.assert_array_equal(table["rating_at_least_4"], stars >= 4)
    np.testing.assert_array_equal(table["rating_is_5"], stars == 5)
    np.testing.assert_array_equal(table["rating_at_most_2"], stars <= 2)


def test_columns_describe_the_user_and_the_film(table):
    users, items = {user[0]: user for user in USERS}, {item[0]: item for item in ITEMS}
    for row, (user_id, item_id, _, _) in zip(table.to_pylist(), EXPECTED, strict=True):
        assert (row["age"], row["gender"], row["occupation"]) == users[user_id][1:]
        *_, genres, year = items[item_id]
        assert row["genres"] == genres.split()
        assert row["film_age"] == (None if np.isnan(year) else 1998 - year)


def test_unknown_numbers_are_null(table):
    assert table["film_age"].null_count > 0
    for name in ("film_age", *HISTORY):
        assert not pc.any(pc.is_nan(table[name])).as_py(), name


def brute_force_history(row: int) -> list[float]:
    """Compute the history of a row from its definition, with a new pass over the earlier ratings for every value."""

    def earlier(row: int) -> list[int]:
        return [other for other in range(len(EXPECTED)) if EXPECTED[other][3] < EXPECTED[row][3]]

    def mean(row: int) -> float:
        return float((3.5 + sum(EXPECTED[k][2] for k in earlier(row))) / (1 + len(earlier(row))))

    def item_offset(row: int) -> float:
        stars = [EXPECTED[k][2] for k in earlier(row) if EXPECTED[k][1] == EXPECTED[row][1]]
        return float((sum(stars) - len(stars) * mean(row)) / (len(stars) + 5))

    def user_offset(row: int) -> float:
        residuals = [EXPECTED[k][2] - mean(k) - item_offset(k) for k in by_user(row)]
        return float(sum(residuals) / (len(residuals) + 5))

    def by_user(row: int) -> list[int]:
        return [k for k in earlier(row) if EXPECTED[k][0] == EXPECTED[row][0]]

    def residual(row: int) -> float:
        return EXPECTED[row][2] - mean(row) - item_offset(row) - user_offset(row)

    def similarity(row: int, item: int, other: int) -> float:
        rated: dict[tuple[int, int], float] = {(EXPECTED[k][0], EXPECTED[k][1]): RESIDUALS[k] for k in earlier(row)}
        products = [
            rated[user, item] * rated[user, other] for user in USER_IDS if {(user, item), (user, other)} <= rated.keys()
        ]
        return sum(products) / (len(products) + 10)

    if not RESIDUALS:
        RESIDUALS.extend(residual(k) for k in range(len(EXPECTED)))
    _, item, _, second = EXPECTED[row]
    genres = dict(zip(ITEM_IDS, (entry[5].split() for entry in ITEMS), strict=True))
    affinities = []
    for genre in genres[item]:
        residuals = [RESIDUALS[k] for k in by_user(row) if genre in genres[EXPECTED[k][1]]]
        affinities.append(sum(residuals) / (len(residuals) + 5))
    weights = [(similarity(row, item, EXPECTED[k][1]), RESIDUALS[k]) for k in by_user(row)]
    seconds = [EXPECTED[k][3] for k in by_user(row)]
    return [
        len(by_user(row)),
        sum(EXPECTED[k][1] == item for k in earlier(row)),
        user_offset(row),
        item_offset(row),
        float(np.mean(affinities)),
        sum(s * r for s, r in weights) / (sum(abs(s) for s, _ in weights) + 1),
        second - min(seconds, default=np.nan),
        second - max(seconds, default=np.nan),
    ]


RESIDUALS: list[float] = []


def test_the_history_counts_strictly_earlier_ratings(table):
    expected = np.array([brute_force_history(row) for row in range(len(EXPECTED))])
    seconds = [row[3] for row in EXPECTED]
    assert len(set(seconds)) < len(seconds) - 10, "some ratings have the same time"
    assert np.abs(expected[:, 5]).max() > 0, "some films have similar ones"
    np.testing.assert_allclose(history(table), expected, rtol=1e-6, atol=1e-9)


def test_a_rating_does_not_change_features_at_the_same_time_or_earlier(tmp_path, table):
    """Changes the stars from one time on. Features up to that time must stay the same, bit for bit."""
    directory = write_grouplens(tmp_path / "input")
    middle = EXPECTED[len(EXPECTED) // 2][3]
    changed = [(u, i, 6 - r if t >= middle else r, t) for u, i, r, t in RATINGS]
    assert changed != RATINGS
    (directory / "u.data").write_text("".join("\t".join(map(str, row)) + "\n" for row in changed))
    splits = prepare(directory, tmp_path / "out")
    before, after = history(table), history(pa.concat_tables(splits.values()))
    known = sum(row[3] <= middle for row in EXPECTED)
    np.testing.assert_array_equal(after[:known], before[:known])
    assert not np.array_equal(after, before, equal_nan=True)


# --- User errors ---


def replace_line(name: str, line: int, text: str) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        lines = (directory / name).read_bytes().split(b"\n")
        lines[line - 1] = text.encode()
        (directory / name).write_bytes(b"\n".join(lines))

    return change


def delete(name: str) -> Callable[[Path], None]:
    return lambda directory: (directory / name).unlink()


def delete_all(directory: Path) -> None:
    shutil.rmtree(directory)


GROUPLENS_ERRORS = [
    (delete_all, "neither u.data nor ml-100k.inter"),
    (delete("u.user"), r"u.user: .*No such file"),
    (replace_line("u.data", 3, "1\t2\t3"), r"u.data, line 3: 3 field\(s\) found, expected 4"),
    (replace_line("u.data", 3, "1\t22\tx\t881250949"), "u.data, line 3: rating is 'x', expected a number from 1 to 5"),
    (replace_line("u.data", 3, "1\t22\tnan\t881250949"), "rating is 'nan', expected a number from 1 to 5"),
    (replace_line("u.data", 3, "1\t22\t6\t881250949"), "rating is '6', expected a number from 1 to 5"),
    (replace_line("u.data", 3, "1\t22\t5\t-1"), "timestamp is '-1', expected an integer"),
    (replace_line("u.data", 3, "2\t22\t5\t881250949"), r"user_id is '2', expected an id from .*u.user"),
    (replace_line("u.data", 3, "1\t2\t5\t881250949"), r"item_id is '2', expected an id from .*u.item"),
    (replace_line("u.user", 2, "3|old|F|other|0"), "u.user, line 2: age is 'old', expected an integer"),
    (replace_line("u.user", 2, "3|53|X|other|0"), "gender is 'X', expected one of F, M"),
    (replace_line("u.user", 2, "3|53|F|baker|0"), "occupation is 'baker', expected one of administrator, "),
    (replace_line("u.user", 2, "1|53|F|other|0"), r"line 2: duplicate user_id 1; .*u.user, line 1 "),
    (replace_line("u.item", 1, "1|Toy Story||"), r"u.item, line 1: 4 field\(s\) found, expected 24"),
    (
        replace_line("u.item", 1, f"1|Toy|in May|||{FLAGS['unknown']}"),
        "release_date is 'in May', expected a year",
    ),
    (
        replace_line("u.item", 1, f"1|Toy||||{FLAGS['unknown'].replace('1', '2')}"),
        "unknown is '2', expected one of 0, 1",
    ),
]
HEADER_ERRORS = [
    (delete("ml-100k.item"), r"ml-100k.item: .*No such file"),
    (replace_line("ml-100k.inter", 1, "user:token\titem_id:token\trating:float\ttimestamp:float"), "no column user_id"),
    (
        replace_line("ml-100k.item", 14, "1\tToy Story\t1995\tAnimated"),
        "line 14: unknown genre 'Animated'",
    ),
    (
        replace_line("ml-100k.item", 14, "1\tToy Story\tX\tComedy"),
        "line 14: release_year is 'X', expected a year",
    ),
]


@pytest.mark.parametrize(
    ("write", "change", "message"),
    [
        *((write_grouplens, *error) for error in GROUPLENS_ERRORS),
        *((write_with_header, *error) for error in HEADER_ERRORS),
    ],
)
def test_an_invalid_file_is_reported_and_nothing_is_written(tmp_path, write, change, message):
    change(write(tmp_path / "input"))
    before = contents(tmp_path)
    with pytest.raises(UserError, match=message):
        prepare(tmp_path / "input", tmp_path / "out")
    assert contents(tmp_path) == before
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_not_utf_8_is_an_error(tmp_path):
    directory = write_with_header(tmp_path / "input")
    (directory / "ml-100k.item").write_text("item_id:token\tcaf\xe9\n", encoding="latin-1")
    with pytest.raises(UserError, match="not UTF-8"):
        prepare(directory, tmp_path / "out")


def test_too_few_ratings_are_an_error(tmp_path):
    directory = write_grouplens(tmp_path / "input")
    (directory / "u.data").write_text("1\t22\t5\t881250949\n")
    with pytest.raises(UserError, match=r"1 rating\(s\) found, .*at least 10"):
        prepare(directory, tmp_path / "out")


def test_an_existing_directory_is_refused_and_unchanged(tmp_path, monkeypatch):
    write_grouplens(tmp_path / "input")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    monkeypatch.setattr(sys, "argv", ["main", "--input", str(tmp_path / "input"), "--out", str(tmp_path / "out")])
    with pytest.raises(UserError, match=rf"--out {tmp_path}/out.* exists"):
        main()
    assert contents(tmp_path / "out") == {"mine.txt": b"mine"}


@layout
def test_the_command_converts_or_reports_a_user_error(tmp_path, write):
    def run(directory: Path) -> "subprocess.CompletedProcess[str]":
        arguments = ["--input", str(directory), "--out", str(tmp_path / "out")]
        command = [sys.executable, "-m", "projects.home.recap.tools.movielens", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)

    wrong = run(tmp_path)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.count("\n") == 1
    assert "neither u.data nor ml-100k.inter" in wrong.stderr
    done = run(write(tmp_path / "input"))
    assert (done.returncode, done.stderr) == (0, "")
    assert f"train, {len(RATINGS) // 10} validation" in done.stdout
    assert f"rows of {len(USERS)} users and {len(ITEM_IDS)} films" in done.stdout
