"""Predictions have the same bytes on any number of ranks, and after any number of kills."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.programs import finish
from tests.support.runs import small_run
from tests.support.trap import TRAP, Trap, trapped

pytestmark = pytest.mark.faults

PREDICT = "projects.home.recap.predict"
FAVORITED = "recap.engagement.is_favorited"


@pytest.fixture(scope="module")
def save_dir(recap_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "run"
    ended = finish(small_run(recap_data, path))
    assert ended.returncode == 0, ended.stderr
    return path


@pytest.fixture(scope="module")
def inputs(recap_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the rows of two files in small row groups."""
    directory = tmp_path_factory.mktemp("inputs")
    for name in ("validation", "train"):
        pq.write_table(pq.read_table(recap_data / name), directory / f"{name}.parquet", row_group_size=50)
    return directory


def arguments(save_dir: Path, inputs: Path, out: Path) -> list[str]:
    options = ["--columns", "meta__user_id", "--rows_per_file", "150", "--batch_size", "64"]
    options += ["--top_k", "2", "--group_by", "meta__author_id"]
    return ["--checkpoint", str(save_dir), "--inputs", str(inputs), "--out", str(out), *options]


def content(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def alone(save_dir: Path, inputs: Path) -> dict[str, bytes]:
    """Return the files that one process writes."""
    out = save_dir.parent / "alone"
    ended = finish(arguments(save_dir, inputs, out), module=PREDICT)
    assert ended.returncode == 0, ended.stderr
    found = content(out)
    assert len(found) > 10
    assert json.loads(found["manifest.json"])["metrics"]["examples"] == 2500
    return found


@pytest.mark.parametrize("ranks", [2, 3])
def test_any_number_of_ranks_writes_the_same_bytes(ranks, save_dir, inputs, alone, tmp_path):
    ended = finish(arguments(save_dir, inputs, tmp_path / "out"), ranks, module=PREDICT)
    assert ended.returncode == 0, ended.stderr
    assert content(tmp_path / "out") == alone


def test_killed_ranks_continue_and_write_the_same_bytes(save_dir, inputs, alone, tmp_path):
    out = tmp_path / "out"
    traps = [
        Trap(r"os\.rename .*manifest\.json"),
        Trap(r"os\.rename .*part-00001", rank=1),
        Trap(r"os\.rename .*metrics-\d+\.npz", count=2),
        Trap(r"os\.rename .*top_k/part-"),
        Trap(r"os\.rename .*manifest\.json"),
        Trap(r"^os\.remove .*metrics-"),
    ]
    restarts = ("--max-restarts", str(len(traps)))
    ended = finish(trapped(traps, PREDICT, arguments(save_dir, inputs, out)), 2, *restarts, module=TRAP)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count("trap: ") == len(traps), ended.stderr
    assert "units are finished already" in ended.stderr
    assert content(out) == alone


def test_an_error_of_one_rank_ends_all_with_one_message(save_dir, recap_data, tmp_path):
    """The second unit, which rank 1 predicts, has a label that is not 0 or 1."""
    rows = pq.read_table(recap_data / "validation")
    index = rows.column_names.index(FAVORITED)
    labels = [0] * 150 + [2] + [0] * (rows.num_rows - 151)
    rows = rows.set_column(index, rows.field(index), pa.array(labels, rows.field(index).type))
    pq.write_table(rows, tmp_path / "rows.parquet", row_group_size=50)
    out = tmp_path / "out"
    words = ["--checkpoint", str(save_dir), "--inputs", str(tmp_path / "rows.parquet"), "--out", str(out)]
    ended = finish([*words, "--rows_per_file", "100"], 2, module=PREDICT)
    assert ended.returncode == 1, ended.stderr
    assert ended.stderr.count("found 2, but a label must be 0 or 1") == 1, ended.stderr
    assert "Traceback" not in ended.stderr.partition("torch/distributed/elastic")[0]
    finished = {path.name for path in (out / "predictions").iterdir()}
    assert "part-00000.parquet" in finished
    assert "part-00001.parquet" not in finished
