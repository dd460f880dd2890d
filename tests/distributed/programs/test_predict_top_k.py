"""Selects the best rows in several partitions: killed ranks write the files of one uninterrupted process."""

import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.programs import TIMEOUT_IN_S, finish, started, wait_for_line
from tests.support.runs import small_run
from tests.support.small_partitions import SMALL_PARTITIONS
from tests.support.trap import Trap, trapped

pytestmark = pytest.mark.faults

PREDICT = "projects.home.recap.predict"
ROWS, ROWS_PER_FILE, K = 1100, 200, 2


@pytest.fixture(scope="module")
def run(recap_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    save_dir = tmp_path_factory.mktemp("predict") / "run"
    done = finish(small_run(recap_data, save_dir))
    assert done.returncode == 0, done.stderr
    return save_dir


@pytest.fixture(scope="module")
def data(recap_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write two files with several row groups each, of which 200 rows make a unit."""
    directory = tmp_path_factory.mktemp("input")
    (part,) = (recap_data / "train").glob("*.parquet")
    users = pa.array([None if row % 50 == 7 else f"user {row * row % 251}" for row in range(ROWS)]).dictionary_encode()
    table = pq.read_table(part)[:ROWS].append_column("user", users)
    pq.write_table(table[:700], directory / "a b%.parquet", row_group_size=100)
    pq.write_table(table[700:], directory / "ü.parquet", row_group_size=150)
    return directory


def arguments(run: Path, data: Path, out: Path, *more: str) -> list[str]:
    options = {"checkpoint": run, "inputs": data, "out": out, "rows_per_file": ROWS_PER_FILE, "batch_size": 64}
    options |= {"columns": "meta__tweet_id", "top_k": K, "group_by": "user"}
    return [*(word for name, value in options.items() for word in (f"--{name}", str(value))), *more]


def predict(words: Sequence[str], ranks: int = 1, *traps: Trap) -> Any:
    return finish(trapped(traps, PREDICT, words), ranks, module=SMALL_PARTITIONS)


def files(out: Path) -> dict[str, bytes]:
    """Return the content of every file of a directory, hidden ones included."""
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def expected(run: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of one uninterrupted process."""
    out = tmp_path_factory.mktemp("predicted") / "out"
    done = predict(arguments(run, data, out))
    assert done.returncode == 0, done.stderr
    assert str(out / "top_k") in done.stdout
    found = files(out)
    assert [name for name in found if "/" not in name] == ["manifest.json"]
    assert len([name for name in found if name.startswith("predictions/")]) == 7
    assert len([name for name in found if name.startswith("top_k/")]) >= 4
    return found


def test_top_k_is_that_of_a_loop_over_all_predictions(expected: dict[str, bytes], tmp_path: Path) -> None:
    for name, content in expected.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in pq.read_table(tmp_path / "predictions").to_pylist():
        groups.setdefault(row["user"], []).append(row)
    best = [
        {"user": group, "rank": rank, **row}
        for group, rows in groups.items()
        for rank, row in enumerate(sorted(rows, key=lambda row: -row["score"])[:K], start=1)
    ]
    assert sum(map(len, groups.values())) == ROWS
    assert len(groups) < len(best) < ROWS
    found = [row for part in sorted((tmp_path / "top_k").iterdir()) for row in pq.read_table(part).to_pylist()]
    assert sorted(found, key=str) == sorted(best, key=str)


def test_three_ranks_that_are_killed_write_the_same_bytes(run, data, expected, tmp_path):
    traps = [
        Trap(r"^os\.rename .*/unit-00002\.arrow$", rank=2),
        Trap(r"^os\.rename .*/top_k/part-00002\.parquet$", rank=2),
    ]
    words = trapped(traps, PREDICT, arguments(run, data, tmp_path))
    done = finish(words, 3, "--max-restarts", str(len(traps)), module=SMALL_PARTITIONS)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("trap: ") == len(traps)
    assert files(tmp_path) == expected


def test_a_killed_command_continues_on_another_number_of_ranks(run, data, expected, tmp_path):
    killed = predict(arguments(run, data, tmp_path), 2, Trap(r"^os\.rename .*/top_k/part-00001\.parquet$", rank=1))
    assert killed.returncode != 0
    assert killed.stderr.count("trap: ") == 1
    kept = {path: path.stat().st_ino for path in tmp_path.glob("*/part-*")}
    assert {path.parent.name for path in kept} >= {"predictions"}
    done = predict(arguments(run, data, tmp_path))
    assert done.returncode == 0, done.stderr
    assert files(tmp_path) == expected
    assert kept == {path: path.stat().st_ino for path in kept}


@pytest.mark.parametrize(("ranks", "number"), [(1, signal.SIGINT), (2, signal.SIGTERM)])
def test_a_signal_ends_the_command_and_it_continues(run, data, expected, tmp_path, ranks, number):
    words = trapped([], PREDICT, arguments(run, data, tmp_path))
    with started(words, ranks, module=SMALL_PARTITIONS) as process:
        wait_for_line(process, "predicting")
        process.send_signal(number)
        _, stderr = process.communicate(timeout=TIMEOUT_IN_S)
    assert process.returncode == (128 + number if ranks == 1 else 1), stderr
    assert stderr.count("Run the same command again to continue.") == 1
    assert stderr.count("Traceback") == ranks - 1, "the one of torchrun itself"
    done = predict(arguments(run, data, tmp_path))
    assert done.returncode == 0, done.stderr
    assert files(tmp_path) == expected
