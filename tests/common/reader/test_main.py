"""python -m common.reader."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.errors import UserError
from common.reader import __main__
from common.reader.__main__ import main
from tests.support.root import ROOT


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, rows in (("train/a", 3), ("train/b", 4), ("validation/a", 5)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        pq.write_table(pa.table({"x": [0.5] * rows}), tmp_path / f"{name}.parquet")
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["common.reader", *arguments])
    return main()


def started(*files: Path, stdout: int = subprocess.PIPE) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "common.reader", "inspect", *files],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
    )


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
    process = started(folder / "train", folder / "validation")
    stdout, stderr = process.communicate(timeout=120)
    assert (process.returncode, stderr) == (1, "")
    assert f"  {bad}: can't be read as Parquet: " in stdout
    assert f"{folder}/validation: 1 file, 5 rows" in stdout
    assert stdout.count("Nothing that a run would refuse.") == 1


def test_a_codec_that_does_not_exist(tmp_path):
    """pyarrow ends the process where it is asked for the codec's name."""
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["a", "b"], "x": [1, 2], "y": [3, 4]}), path)
    content = path.read_bytes()
    for name in (b"\x04text", b"\x01y"):
        # Of the column's metadata in Thrift's compact encoding: its path, then field 4, the codec.
        assert content.count(name + b"\x15\x02") == 1
        content = content.replace(name + b"\x15\x02", name + b"\x15\x1e")
    path.write_bytes(content)
    process = started(path)
    stdout, stderr = process.communicate(timeout=120)
    assert (process.returncode, stderr) == (1, "")
    assert f"{path}: 1 file, 2 rows, compression SNAPPY\n" in stdout
    assert f"{path}: row group 0: column 'y' can't be decoded: " in stdout
    assert stdout.count("can't be decoded") == 1


def test_an_interrupt_is_told_without_a_word_of_checkpoints(folder, tmp_path):
    """It comes while the second set is read, whose many row groups take long after the first set's report."""
    many = tmp_path / "many"
    many.mkdir()
    pq.write_table(pa.table({"x": [0.5] * 200}), many / "0.parquet", row_group_size=1)
    for index in range(1, 1000):
        (many / f"{index}.parquet").hardlink_to(many / "0.parquet")
    process = started(folder / "train", many)
    assert process.stdout is not None
    assert process.stdout.readline().startswith(f"{folder}/train: 2 files")
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=120)
    assert stderr == "interrupted; the same command looks at all files from the beginning\n"
    assert process.returncode == 130


def test_nobody_reads_the_reports(folder):
    reading, writing = os.pipe()
    os.close(reading)
    process = started(folder / "train", folder / "validation", stdout=writing)
    os.close(writing)
    _, stderr = process.communicate(timeout=120)
    assert (process.returncode, stderr) == (128 + signal.SIGPIPE, "")


def test_progress_is_logged_where_there_is_no_terminal_once_it_takes_long(folder, monkeypatch, capsys):
    run(monkeypatch, "inspect", f"{folder}/train")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(__main__, "_LOG_EVERY_S", 0.0)
    run(monkeypatch, "inspect", f"{folder}/train")
    lines = capsys.readouterr().err.splitlines()
    assert [re.sub(r"^\S+ INFO |\d[\d,]* rows/s$", "", line) for line in lines] == ["3 rows read, ", "7 rows read, "]


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
