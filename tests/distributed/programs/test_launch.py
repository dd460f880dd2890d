"""The trainer under torchrun: who prints, and how a mistake or a lost rank ends it."""

import os
import re
import shutil
import signal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from common.checkpointing.directory import complete_steps
from tests.support.programs import finish, finish_apart, started, wait_for_line, worker_pids
from tests.support.runs import small_run


def test_only_rank_0_prints(recap_data: Path, tmp_path: Path) -> None:
    launcher, (main, other) = finish_apart(small_run(recap_data, tmp_path / "run"), tmp_path / "logs")
    assert launcher.returncode == 0, main
    assert "validation after step 12: 500 examples" in main
    assert "Warning" not in main
    assert other == ""


def test_a_mistake_in_the_config_is_one_message_and_status_2(recap_data: Path, tmp_path: Path) -> None:
    arguments = small_run(recap_data, tmp_path / "run", "training.num_train_steps=-1")
    launcher, (main, other) = finish_apart(arguments, tmp_path / "logs")
    assert launcher.returncode == 1  # torchrun's own
    assert set(re.findall(r"exitcode +: (-?\d+)", launcher.stderr)) == {"2"}
    assert main.startswith("error: ")
    assert main.count("error: ") == 1
    assert "training.num_train_steps" in main
    assert "Traceback" not in main
    assert other == ""
    assert not (tmp_path / "run").exists()


def test_bad_data_that_one_rank_finds_is_one_message(recap_data: Path, tmp_path: Path) -> None:
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

    launcher, (main, other) = finish_apart(small_run(data, tmp_path / "run"), tmp_path / "logs")
    assert set(re.findall(r"exitcode +: (-?\d+)", launcher.stderr)) == {"2"}
    found = f"{path}: row group 5, row 75 (both counted from 0): column '{label}': found 2, a label must be 0 or 1"
    assert main.count(found) == 1, main
    assert "Traceback" not in main
    assert other == ""


def test_a_lost_rank_ends_the_run_and_the_same_command_continues(recap_data: Path, tmp_path: Path) -> None:
    with started(small_run(recap_data, tmp_path / "run", "training.num_train_steps=1000"), 2) as process:
        wait_for_line(process, "saved .*/4$")
        os.kill(worker_pids(process)[0], signal.SIGKILL)
        _, told = process.communicate(timeout=60)
        assert process.returncode == 1
    newest = complete_steps(tmp_path / "run/checkpoints")[-1]
    assert f"Newest complete checkpoint: {tmp_path}/run/checkpoints/{newest}; the same command continues" in told
    assert "rank 1: another rank has died or doesn't answer" in told
    done = finish(small_run(recap_data, tmp_path / "run"), 2)
    assert done.returncode == 0, done.stderr
    assert "continuing after step" in done.stderr


def test_ranks_without_a_row_to_evaluate_on(recap_data: Path, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    rows = pq.read_table(next((recap_data / "validation").glob("*.parquet")))
    pq.write_table(rows.slice(0, 1), tmp_path / "one/row.parquet")
    options = ("training.num_train_steps=1", f"validation_data.validation.inputs={tmp_path}/one")
    done = finish(small_run(recap_data, tmp_path / "run", *options), 3)
    assert done.returncode == 0, done.stderr
    assert "validation after step 1: 1 examples" in done.stdout
