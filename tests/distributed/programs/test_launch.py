"""Runs the trainer under torchrun: which rank prints, and how an error or a lost rank ends the run."""

import os
import re
import shutil
import signal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.checkpointing.directory import complete_steps
from tests.support.programs import finish, finish_with_rank_logs, started, wait_for_line, worker_pids
from tests.support.runs import small_run

pytestmark = pytest.mark.faults


def test_only_rank_0_prints(recap_data: Path, tmp_path: Path) -> None:
    launcher, (rank_0, rank_1) = finish_with_rank_logs(small_run(recap_data, tmp_path / "run"), tmp_path / "logs")
    assert launcher.returncode == 0, rank_0
    assert "validation after step 12: 500 examples" in rank_0
    assert "Warning" not in rank_0
    assert rank_1 == ""


def test_an_error_in_the_config_is_one_message_and_status_2(recap_data: Path, tmp_path: Path) -> None:
    arguments = small_run(recap_data, tmp_path / "run", "training.num_train_steps=-1")
    launcher, (rank_0, rank_1) = finish_with_rank_logs(arguments, tmp_path / "logs")
    assert launcher.returncode == 1  # torchrun's own status
    assert set(re.findall(r"exitcode +: (-?\d+)", launcher.stderr)) == {"2"}
    assert rank_0.startswith("error: ")
    assert rank_0.count("error: ") == 1
    assert "training.num_train_steps" in rank_0
    assert "Traceback" not in rank_0
    assert rank_1 == ""
    assert not (tmp_path / "run").exists()


def test_bad_data_on_one_rank_is_one_message(recap_data: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(recap_data, data)
    path = data / "train/part-00000.parquet"
    table = pq.read_table(path)
    label = "recap.engagement.is_replied"
    values = table.column(label).to_numpy().copy()
    values[700] = 2
    column = table.schema.get_field_index(label)
    table = table.set_column(column, table.schema.field(column), pa.array(values))
    pq.write_table(table, path, row_group_size=125)

    launcher, (rank_0, rank_1) = finish_with_rank_logs(small_run(data, tmp_path / "run"), tmp_path / "logs")
    assert set(re.findall(r"exitcode +: (-?\d+)", launcher.stderr)) == {"2"}
    (message,) = [line for line in rank_0.splitlines() if line.startswith("error: ")]
    assert f"{path}: row group 5, row 75 " in message
    assert re.search(rf"'{label}'.*\b2\b", message), message
    assert rank_0.count(str(path)) == 1
    assert "Traceback" not in rank_0
    assert rank_1 == ""


def test_a_lost_rank_ends_the_run_and_the_same_command_continues(recap_data: Path, tmp_path: Path) -> None:
    with started(small_run(recap_data, tmp_path / "run", "training.num_train_steps=1000"), 2) as process:
        wait_for_line(process, "saved .*/4$")
        os.kill(worker_pids(process)[0], signal.SIGKILL)
        _, stderr = process.communicate(timeout=60)
        assert process.returncode == 1
    newest = complete_steps(tmp_path / "run/checkpoints")[-1]
    (message,) = [line for line in stderr.splitlines() if "LostRankError: " in line]
    assert "rank 1: " in message
    assert f"{tmp_path}/run/checkpoints/{newest}" in message
    assert "--max-restarts" in message
    assert "RuntimeError" not in stderr  # gloo's traceback
    done = finish(small_run(recap_data, tmp_path / "run"), 2)
    assert done.returncode == 0, done.stderr
    assert "continuing after step" in done.stderr


def test_evaluation_with_fewer_rows_than_ranks(recap_data: Path, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    rows = pq.read_table(next((recap_data / "validation").glob("*.parquet")))
    pq.write_table(rows.slice(0, 1), tmp_path / "one/row.parquet")
    options = ("training.num_train_steps=1", f"validation_data.validation.inputs={tmp_path}/one")
    done = finish(small_run(recap_data, tmp_path / "run", *options), 3)
    assert done.returncode == 0, done.stderr
    assert "validation after step 1: 1 examples" in done.stdout
