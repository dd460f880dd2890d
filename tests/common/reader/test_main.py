"""python -m common.reader."""

import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.reader.__main__ import main
from core.config.base_config import UserError

ROOT = Path(__file__).parents[3]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, rows in (("train/a", 3), ("train/b", 4), ("validation/a", 5)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        pq.write_table(pa.table({"x": [0.5] * rows}), tmp_path / f"{name}.parquet")
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["common.reader", *arguments])
    return main()


def test_a_report_for_each_pattern_and_directory_and_one_for_all_files(folder, monkeypatch, capsys):
    files = [str(folder / f"train/{name}.parquet") for name in "ab"]
    given = [files[0], f"{folder}/validation", files[1], f"{folder}/*/a.parquet"]
    assert run(monkeypatch, "inspect", *given) == 0
    heads = [line for line in capsys.readouterr().out.splitlines() if line.startswith(str(folder))]
    assert heads == [
        f"{files[0]} and 1 more: 2 files, 7 rows, compression SNAPPY",
        f"{folder}/validation: 1 file, 5 rows, compression SNAPPY",
        f"{folder}/*/a.parquet: 2 files, 8 rows, compression SNAPPY",
    ]


def test_a_bad_file_among_good_ones_is_status_1(folder):
    bad = folder / "train/a.parquet"
    bad.write_bytes(bad.read_bytes()[:-10])
    ended = subprocess.run(
        [sys.executable, "-m", "common.reader", "inspect", folder / "train", folder / "validation"],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (1, "")
    assert f"  {bad}: can't be read as Parquet: " in ended.stdout
    assert f"{folder}/validation: 1 file, 5 rows" in ended.stdout
    assert ended.stdout.count("Nothing that a run would refuse.") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: inspect"),
        (["inspect"], "the following arguments are required: FILES"),
        (["look", "x"], "invalid choice: 'look'"),
        (["inspect", "nowhere/*.parquet"], "nowhere/.*: no file matches"),
    ],
)
def test_a_wrong_command_line(folder, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(folder)
    with pytest.raises(UserError, match=message):
        run(monkeypatch, *arguments)
    with pytest.raises(UserError):
        run(monkeypatch, "inspect", "train", "nowhere")
    assert capsys.readouterr().out == ""
