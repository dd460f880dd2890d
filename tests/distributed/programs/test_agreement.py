"""Programs whose ranks differ end with one message and status 2 on all ranks, before anything is written."""

import contextlib
import io
import json
import os
import re
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.files.embedding_files import write_embeddings
from tests.support.programs import RECAP, TWHIN, finish, finish_with_rank_logs
from tests.support.ranks import free_port, run_ranks
from tests.support.runs import small_run, small_twhin_run

pytestmark = pytest.mark.faults


def test_a_learning_rate_with_the_rank_in_it_is_one_message_and_status_2(recap_data: Path, tmp_path: Path) -> None:
    key = "optimizer.multi_task_learning_rates.backbone_learning_rate"
    save_dir = f"training.save_dir={tmp_path}/run-$RANK"
    arguments = small_run(recap_data, tmp_path / "run", f"{key}={{constant: 0.1$RANK}}", save_dir)
    launcher, (rank_0, rank_1) = finish_with_rank_logs(arguments, tmp_path / "logs")
    assert set(re.findall(r"exitcode +: (-?\d+)", launcher.stderr)) == {"2"}
    assert rank_0.count("error") == 1
    first, *differences = rank_0[rank_0.index("error: ") :].splitlines()[:3]
    assert first == "error: the 2 processes of this run differ:"
    assert differences == [
        f'  training.save_dir: "{tmp_path}/run-0" on rank 0; "{tmp_path}/run-1" on rank 1',
        f"  {key}.constant: 0.1 on rank 0; 0.11 on rank 1",
    ]
    assert "Traceback" not in rank_0
    assert rank_1 == ""
    assert [path.name for path in tmp_path.iterdir()] == ["logs"]


def test_a_program_for_one_process_refuses_several(tmp_path: Path) -> None:
    arguments = ["--out", str(tmp_path / "graph"), "--users", "20", "--tweets", "20", "--edges", "100"]
    done = finish(arguments, 2, module="projects.twhin.tools.generate")
    assert set(re.findall(r"exitcode +: (-?\d+)", done.stderr)) == {"2"}
    assert done.stderr.count("error: this program runs in one process, but the environment sets WORLD_SIZE=2") == 1
    assert not list(tmp_path.iterdir())


# --- Ranks whose relative paths name different files. ---


def append_row(path: Path) -> None:
    table = pq.read_table(path)
    pq.write_table(pa.concat_tables([table, table.slice(0, 1)]), path)


def reverse_rows(path: Path) -> None:
    """Reverse the rows of all columns but `index`, which changes no size."""
    table = pq.read_table(path)
    backward = table.take(np.arange(len(table))[::-1])
    if "index" in table.column_names:
        backward = backward.set_column(backward.column_names.index("index"), "index", table["index"])
    pq.write_table(backward, path, use_dictionary=False)


def move_mask(path: Path) -> None:
    np.save(path, np.roll(np.load(path), 1))


class Case(NamedTuple):
    """A file that differs on rank 1."""

    module: str
    file: str
    change: Callable[[Path], None]
    line: str
    """Beginning of a line of the message."""
    mode: str = "train"


TRAIN = "train/part-00000.parquet"
EXAMPLES = 'validation_data.validation.files[part-00000.parquet]: "500 rows, '
VALIDATION = "validation/part-00000.parquet"
MASK = "preprocess={truncate_and_slice: {continuous_feature_mask_path: data/mask.npy}}"
CASES = [
    Case(RECAP, TRAIN, append_row, 'train_data.files[part-00000.parquet]: "2000 rows, '),
    Case(RECAP, VALIDATION, append_row, EXAMPLES),
    Case(RECAP, VALIDATION, append_row, EXAMPLES, "evaluate"),
    Case(RECAP, "mask.npy", move_mask, 'train_data.features.continuous: "'),
    Case(TWHIN, TRAIN, append_row, "train_data.files[part-00000.parquet]: "),
    Case(TWHIN, VALIDATION, append_row, "validation_data.validation.files[part-00000.parquet]: "),
    Case(TWHIN, VALIDATION, append_row, "validation_data.validation.files[part-00000.parquet]: ", "evaluate"),
    Case(TWHIN, "known.parquet", append_row, "metrics.known_edges[0].files[known.parquet]: "),
    Case(TWHIN, "vocabulary/user.parquet", reverse_rows, "vocabularies.user: "),
    Case(TWHIN, "export/user.parquet", reverse_rows, "rows of data/export for the table user: "),
]


def run_program(rank: int, ports: list[int], root: Path) -> list[str]:
    """Run all cases, each in a directory of this rank that has `data`. Return what this rank printed."""
    printed = []
    for number, (port, case) in enumerate(zip(ports, CASES, strict=True)):
        os.chdir(root / str(number) / str(rank))
        os.environ["MASTER_PORT"] = str(port)
        data, run = Path("data"), root / f"run-{number}"
        if case.module == RECAP:
            arguments = small_run(data, run, f"train_data.{MASK}", f"validation_data.validation.{MASK}")
        else:
            pretrained = "{emb_name: user, embedding_snapshot_uri: data/export}"
            keys = ("metrics.known_edges=[data/known.parquet]", f"model.embeddings.tables[0].pretrained={pretrained}")
            arguments = small_twhin_run(data, run, *keys)
        with (
            mock.patch("sys.argv", [case.module, *arguments, "--mode", case.mode]),
            contextlib.redirect_stderr(io.StringIO()) as stderr,
            pytest.raises(SystemExit) as ended,
        ):
            runpy.run_module(case.module, run_name="__main__")
        assert ended.value.code == 2
        printed.append(stderr.getvalue())
    return printed


def test_files_that_differ_behind_equal_paths_are_named(recap_data: Path, twhin_data: Path, tmp_path: Path) -> None:
    for number, case in enumerate(CASES):
        for rank in range(2):
            data = tmp_path / str(number) / str(rank) / "data"
            shutil.copytree(recap_data if case.module == RECAP else twhin_data, data)
            if case.module == RECAP:
                np.save(data / "mask.npy", np.arange(width_of_continuous(data)) % 3 > 0)
            else:
                shutil.copy(data / VALIDATION, data / "known.parquet")
                (data / "export").mkdir()
                rows = np.random.default_rng(0).normal(size=(1000, 32))
                write_embeddings(data / "export/user.parquet", None, rows)
        case.change(data / case.file)
    ports = [free_port() for _ in CASES]
    ranks = run_ranks(run_program, ports, tmp_path, joined=False, timeout_in_s=240)
    for number, (case, message, other) in enumerate(zip(CASES, *ranks, strict=True)):
        assert "error: the 2 processes of this run differ:\n" in message, (case, message)
        assert f"\n  {case.line}" in message, (case, message)
        assert message.count("error") == 1, case
        assert "error" not in other, case
        # Pretrained rows are read once save_dir is claimed.
        run = tmp_path / f"run-{number}"
        assert run.exists() == case.file.startswith("export"), case
        assert not [*run.glob("checkpoints/*"), *run.glob("*.yaml"), *run.glob("*.jsonl")], case


def width_of_continuous(data: Path) -> int:
    listed = json.loads((data / "schema.json").read_text())["schema"]
    return next(int(entry["length"]) for entry in listed if entry["feature_name"] == "continuous")
