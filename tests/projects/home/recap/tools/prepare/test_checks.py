import collections
import datetime
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.errors import UserError
from projects.home.recap.tools.prepare.checks import (
    duplicate_warnings,
    label_warnings,
    size_warnings,
    time_warnings,
    warn_of_little_space,
)
from projects.home.recap.tools.prepare.database import open_database
from projects.home.recap.tools.prepare.input_files import find_files
from projects.home.recap.tools.prepare.split_files import SPLITS, Split


def splits_of(rows: tuple[int, int, int], positives: tuple[int, int, int]) -> dict[str, Split]:
    """Splits with a label."""
    return {
        name: Split(name, Path("unused"), rows[index], {"clicked": positives[index]}, {})
        for index, name in enumerate(SPLITS)
    }


def written(folder: Path, name: str, table: dict[str, Any]) -> Split:
    pq.write_table(pa.table(table), folder / f"{name}.parquet")
    return Split(name, folder / f"{name}.parquet", 0, {}, {})


def test_an_ordinary_label_has_no_warning() -> None:
    assert label_warnings(splits_of((800, 100, 100), (80, 10, 10))) == []


def test_a_rate_below_one_in_a_thousand_is_rare() -> None:
    assert label_warnings(splits_of((8000, 1000, 1000), (8, 1, 1))) == []
    (warning,) = label_warnings(splits_of((8000, 1000, 1001), (8, 1, 1)))
    assert warning.startswith("clicked: only 10 of 10,001 rows are 1 (0.1000%)")


@pytest.mark.parametrize(
    ("positives", "expected"),
    [
        ((80, 0, 10), "clicked: all rows of validation are 0"),
        ((800, 10, 100), "clicked: all rows of train, test are 1"),
    ],
)
def test_a_label_that_is_always_the_same_in_a_split_is_reported(positives: tuple[int, int, int], expected: str) -> None:
    (warning,) = label_warnings(splits_of((800, 100, 100), positives))
    assert warning.startswith(expected)


def test_copies_of_rows_are_counted(tmp_path: Path) -> None:
    chance = random.Random(0)
    hashes = [chance.randrange(300) - 2**63 for _ in range(400)]
    pq.write_table(pa.table({"hash": pa.array(hashes, pa.int64())}), tmp_path / "hashes.parquet")
    counts = collections.Counter(hashes)
    repeated = [count for count in counts.values() if count > 1]
    with open_database(tmp_path, threads=1) as connection:
        (warning,) = duplicate_warnings(connection, tmp_path / "hashes.parquet")
        assert warning.startswith(
            f"{len(repeated)} distinct rows occur more than once; {sum(repeated) - len(repeated)} rows are copies"
        )
        pq.write_table(pa.table({"hash": [1, 2, 3]}), tmp_path / "hashes.parquet")
        assert duplicate_warnings(connection, tmp_path / "hashes.parquet") == []


def test_training_rows_that_are_later_than_validation_are_reported(tmp_path: Path) -> None:
    days = [datetime.date(2026, 1, day) for day in range(1, 31)]
    table = {"A": days[:20], "a": days[10:], "born": days[:1] * 20}
    later = {"A": days[20:], "a": days[:10], "born": days[1:11]}
    splits = {"train": written(tmp_path, "train", table), "validation": written(tmp_path, "validation", later)}
    with open_database(tmp_path, threads=1) as connection:
        assert time_warnings(connection, splits, list(table), []) == []
        assert time_warnings(connection, splits, list(table), ["A", "born"]) == []
        (warning,) = time_warnings(connection, splits, list(table), ["A", "a", "born"])
    assert "later than rows of validation, by a." in warning
    assert warning.endswith("--time a")


@pytest.mark.parametrize(("size", "expected"), [(2**43, 1), (100, 0)])
def test_an_input_that_is_larger_than_the_disk_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, size: int, expected: int
) -> None:
    with (tmp_path / "table.csv").open("w") as file:
        file.write("a,b\n1,2\n")
        file.truncate(size)  # takes no space
    warn_of_little_space(find_files([tmp_path]), tmp_path)
    assert len(caplog.records) == expected


def test_few_rows_are_reported_and_too_few_refused() -> None:
    assert size_warnings(splits_of((1000, 1, 1), (1, 1, 1))) == []
    (warning,) = size_warnings(splits_of((999, 1, 1), (1, 1, 1)))
    assert warning.startswith("only 999 rows to train on")
    assert len(size_warnings(splits_of((24, 1, 1), (1, 1, 1)))) == 1
    with pytest.raises(UserError, match="only 23 rows to train on, but at least 24 are needed"):
        size_warnings(splits_of((23, 1, 1), (1, 1, 1)))
