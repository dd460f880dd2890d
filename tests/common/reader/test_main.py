"""Tests `python -m common.reader`."""

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
        pq.write_table(pa.table({"x": [0.5] * rows}), tmp_path / f"{name}.parquet", write_page_checksum=True)
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["common.reader", *arguments])
    return main()


def start(*files: Path, stdout: int = subprocess.PIPE) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "common.reader", "inspect", *files],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_one_report_for_each_pattern_and_directory_and_one_for_all_single_files(folder, monkeypatch, capsys):
    files = [str(folder / f"train/{name}.parquet") for name in "ab"]
    given = [files[0], f"{folder}/validation", files[1], f"{folder}/*/a.parquet"]
    assert run(monkeypatch, "inspect", *given) == 0
    heads = [line for line in capsys.readouterr().out.splitlines() if line.startswith(str(folder))]
    assert heads == [
        f"{files[0]} and 1 more: 2 files, 7 rows, compression SNAPPY",
        f"{folder}/validation: 1 file, 5 rows, compression SNAPPY",
        f"{folder}/*/a.parquet: 2 files, 8 rows, compression SNAPPY",
    ]


def test_bad_file_among_good_ones_is_status_1(folder):
    bad = folder / "train/a.parquet"
    bad.write_bytes(bad.read_bytes()[:-10])
    process = start(folder / "train", folder / "validation")
    stdout, stderr = process.communicate(timeout=120)
    assert (process.returncode, stderr) == (1, "")
    assert f"  {bad}: cannot read this file as Parquet: " in stdout
    assert f"{folder}/validation: 1 file, 5 rows" in stdout
    assert stdout.count("No errors found.") == 1


def test_unknown_codec_is_reported(tmp_path):
    """pyarrow ends the process if it is asked for the name of the codec."""
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["a", "b"], "x": [1, 2], "y": [3, 4]}), path)
    content = path.read_bytes()
    for name in (b"\x04text", b"\x01y"):
        # The column's metadata in Thrift's compact encoding: its path, then field 4 (codec).
        assert content.count(name + b"\x15\x02") == 1
        content = content.replace(name + b"\x15\x02", name + b"\x15\x1e")
    path.write_bytes(content)
    process = start(path)
    stdout, stderr = process.communicate(timeout=120)
    assert (process.returncode, stderr) == (1, "")
    assert f"{path}: 1 file (1 without page checksums), 2 rows, compression SNAPPY\n" in stdout
    assert f"{path}: row group 0: cannot decode column 'y': " in stdout
    assert stdout.count("cannot decode") == 1


def test_interrupt_message_does_not_mention_checkpoints(folder, tmp_path):
    """The interrupt arrives while the many row groups of the second set are read, after the report on the first."""
    many = tmp_path / "many"
    many.mkdir()
    pq.write_table(pa.table({"x": [0.5] * 200}), many / "0.parquet", row_group_size=1)
    content = (many / "0.parquet").read_bytes()
    for index in range(1, 1000):
        (many / f"{index}.parquet").write_bytes(content)
    process = start(folder / "train", many)
    assert process.stdout is not None
    assert process.stdout.readline().startswith(f"{folder}/train: 2 files")
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=120)
    assert stderr == "interrupted; the same command reads all files from the beginning\n"
    assert process.returncode == 130


def test_closed_standard_output_ends_with_sigpipe_status(folder):
    reading, writing = os.pipe()
    os.close(reading)
    process = start(folder / "train", folder / "validation", stdout=writing)
    os.close(writing)
    _, stderr = process.communicate(timeout=120)
    assert (process.returncode, stderr) == (128 + signal.SIGPIPE, "")


def test_progress_is_logged_without_a_terminal_if_reading_takes_long(folder, monkeypatch, capsys):
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
def test_invalid_command_line(folder, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(folder)
    with pytest.raises(UserError, match=message):
        run(monkeypatch, *arguments)
    with pytest.raises(UserError):
        run(monkeypatch, "inspect", "train", "nowhere")
    assert capsys.readouterr().out == ""


def test_a_report_on_the_features_of_a_configuration(folder, monkeypatch, capsys):
    config = folder / "config.yaml"
    config.write_text("training: {save_dir: runs}\nfeatures: {x: {kind: number}, c: {kind: number, column: x}}\n")
    assert run(monkeypatch, "inspect", f"{folder}/train", f"{folder}/validation", "--config", str(config)) == 0
    heads = [line for line in capsys.readouterr().out.splitlines() if line.startswith(str(folder))]
    assert heads == [f"{folder}/train: 2 files, 7 rows, 2 features", f"{folder}/validation: 1 file, 5 rows, 2 features"]
    config.write_text("features: {y: {kind: number}}\n")
    assert run(monkeypatch, "inspect", f"{folder}/train", "--config", str(config)) == 1
    assert "no column 'y'" in capsys.readouterr().out
    config.write_text("training: {}\n")
    with pytest.raises(UserError, match="features: missing"):
        run(monkeypatch, "inspect", f"{folder}/train", "--config", str(config))
