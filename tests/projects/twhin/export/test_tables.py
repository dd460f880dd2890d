import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.errors import UserError
from common.files.atomic_directory import atomic_directory
from projects.twhin.data.vocabulary import write_vocabulary
from projects.twhin.export import tables
from projects.twhin.export.__main__ import main
from projects.twhin.export.tables import export
from projects.twhin.model.config import TwhinModelConfig
from tests.support.faults import full_disk
from tests.support.root import ROOT
from tests.support.saved_twhin import with_vocabulary, write_run
from tests.support.toy_twhin import model_config, parameter_of, scorer_of, table_rows

USERS = [f"u{row}" for row in range(9)]  # the table has 11 rows


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[Path, TwhinModelConfig]:
    """Return the save_dir of a run with two checkpoints, and its model configuration."""
    folder: Path = tmp_path_factory.mktemp("run")
    write_vocabulary(path := folder / "vocabulary" / "user.parquet", pa.array(USERS))
    config = with_vocabulary(model_config(), path)
    write_run(folder / "run", config)
    write_run(folder / "run", config, step=40)
    return folder / "run", config


def read(path: Path) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = pq.read_table(path).to_pydict()
    return columns


def test_exported_rows_equal_the_tables(run, tmp_path):
    save_dir, config = run
    exported = export(save_dir / "checkpoints" / "5", tmp_path / "out")
    rows = {name: table.detach().float().numpy() for name, table in table_rows(config).items()}
    user, tweet = (read(tmp_path / "out" / f"{table}.parquet") for table in ("user", "tweet"))
    assert user["entity"] == USERS
    assert user["index"] == list(range(9))
    assert np.array_equal(np.array(user["embedding"], np.float32), rows["user"][:9])
    assert tweet["entity"] == tweet["index"] == list(range(7))
    assert np.array_equal(np.array(tweet["embedding"], np.float32), rows["tweet"])
    summary = [(table.name, table.num_rows, table.num_skipped, table.dim) for table in exported]
    assert summary == [("user", 9, 2, 6), ("tweet", 7, 0, 6)]


def read_tensor(path: Path) -> np.ndarray[Any, Any]:
    """Return the only tensor of a safetensors file: the length of a JSON header, the header, and the values."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    ((name, entry),) = json.loads(content[8 : 8 + length]).items()
    assert (name, entry["dtype"]) == ("embedding", "F32")
    begin, end = entry["data_offsets"]
    return np.frombuffer(content[8 + length :][begin:end], "<f4").reshape(entry["shape"])


def test_tensors_equal_the_parquet_files_row_by_row(run, tmp_path):
    save_dir, _ = run
    export(save_dir / "checkpoints" / "5", tmp_path / "out")
    for table in ("user", "tweet"):
        embeddings = np.array(read(tmp_path / "out" / f"{table}.parquet")["embedding"], np.float32)
        assert np.array_equal(read_tensor(tmp_path / "out" / f"{table}.safetensors"), embeddings)


def test_missing_safetensors_is_one_message_before_any_work(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(UserError, match=r"safetensors.*pip install -r requirements-serving.txt"):
        export(run[0] / "checkpoints" / "5", tmp_path / "parent" / "out")
    assert not (tmp_path / "parent").exists()


def test_a_full_disk_is_one_message(tmp_path):
    with (
        pytest.raises(UserError, match=f"^--out {tmp_path}/out: .*a.safetensors.* File too large"),
        full_disk(100_000),
        atomic_directory(tmp_path / "out") as partial,
    ):
        tables._write_tensor(partial / "a.safetensors", np.ones((30_000, 1), np.float32))
    assert not (tmp_path / "out").exists()


def test_checkpoints_can_be_on_another_disk(run, tmp_path):
    """The configuration is found by the path that the user gives, or by where a link to a checkpoint leads."""
    save_dir, _ = run
    shutil.copytree(save_dir, tmp_path / "run")
    (tmp_path / "run/checkpoints").rename(tmp_path / "big-disk")
    (tmp_path / "run/checkpoints").symlink_to(tmp_path / "big-disk")
    (tmp_path / "best").symlink_to(save_dir / "checkpoints/5")
    for number, checkpoint in enumerate((tmp_path / "run/checkpoints/5", tmp_path / "best")):
        export(checkpoint, tmp_path / f"out-{number}")
        assert read(tmp_path / f"out-{number}/user.parquet")["entity"] == USERS
    with pytest.raises(UserError, match="Give the path of the checkpoint in the save_dir"):
        export(tmp_path / "big-disk/5", tmp_path / "out")


@pytest.mark.parametrize("sides", ["both", "lhs", "rhs"])
def test_exported_operators_belong_to_their_relations(tmp_path, sides):
    config = model_config(operator_sides=sides)
    export(write_run(tmp_path / "run", config), tmp_path / "out")
    scorer = scorer_of(config).float()
    rows = pq.read_table(tmp_path / "out" / "relations" / "operators.parquet").to_pylist()
    expected_sides = ["lhs", "rhs"] if sides == "both" else [sides]
    assert [(row["relation"], row["side"]) for row in rows] == [
        (rel, side) for rel in range(len(config.relation_list)) for side in expected_sides
    ]
    for row in rows:
        relation = config.relation_list[row["relation"]]
        assert (row["name"], row["lhs"], row["rhs"], row["operator"]) == (
            relation.name,
            relation.lhs,
            relation.rhs,
            relation.operator,
        )
        parameter = parameter_of(scorer, config, row["side"], row["relation"])
        assert row["parameter"] == ([] if parameter is None else parameter.reshape(-1).tolist())


@pytest.fixture
def copied(run: tuple[Path, TwhinModelConfig], tmp_path: Path) -> Path:
    """Return the checkpoint of a copy of the run that a test may damage."""
    shutil.copytree(run[0], tmp_path / "run")
    return tmp_path / "run" / "checkpoints" / "5"


def test_errors_leave_nothing_behind(run, copied, tmp_path):
    _, config = run

    def message_of(checkpoint: Path = copied) -> str:
        with pytest.raises(UserError) as caught:
            export(checkpoint, tmp_path / "out")
        assert not (tmp_path / "out").exists()
        return str(caught.value)

    assert message_of(tmp_path / "no").startswith(f"{tmp_path}/no: no such directory")
    run_config = tmp_path / "run" / "config.yaml"
    text = run_config.read_text()
    run_config.write_text(text.replace("num_embeddings: 7", "num_embeddings: 8"))
    message = message_of()
    assert message.startswith(f"{copied}: the table tweet is 7 x 6")
    assert "config.yaml of the run says 8 x 6" in message
    vocabulary = config.tables["user"].vocab
    run_config.write_text(text.replace(str(vocabulary), f"{tmp_path}/no.parquet"))
    message = message_of()
    for fact in ("model.embeddings.tables[user].vocab", f"{tmp_path}/no.parquet"):
        assert fact in message
    write_vocabulary(long := tmp_path / "vocabulary" / "user.parquet", pa.array(range(12)))
    run_config.write_text(text.replace(str(vocabulary), str(long)))
    message = message_of()
    for fact in ("model.embeddings.tables[user].vocab", str(long), "12 entities", "num_embeddings", "11"):
        assert fact in message
    run_config.write_text("training: {}")
    message = message_of()
    assert message.startswith(f"{copied}: cannot read a TwHIN configuration")
    assert str(run_config) in message
    run_config.unlink()
    message = message_of()
    assert str(run_config) in message
    assert "No such file" in message
    run_config.write_text(text)
    next(copied.glob("*.bin")).write_bytes(b"x")
    message = message_of()
    assert str(copied) in message
    assert "damaged" in message


def test_existing_directory_is_not_touched(run, tmp_path):
    with atomic_directory(tmp_path / "out") as partial:
        (partial / "mine").write_text("x")
    with pytest.raises(UserError, match=f"--out {tmp_path}/out .*exists"):
        export(run[0] / "checkpoints" / "5", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_the_directory_is_tried_before_the_checkpoint_is_read(copied, tmp_path):
    next(copied.glob("tensors-*")).write_bytes(b"x")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=f"^--out {tmp_path}/file/out: "):
        export(copied, tmp_path / "file" / "out")


def test_program_reports_the_checkpoint_and_the_files(run, tmp_path, monkeypatch, capsys):
    arguments = ["--checkpoint", str(run[0]), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["", *arguments])
    assert main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"exported {run[0]}/checkpoints/40"
    assert lines[3].split()[:3] == ["user", "9", "6"]
    assert lines[4].split() == ["tweet", "7", "6", "row", "indices", f"{tmp_path}/out/tweet.parquet"]
    assert lines[5].startswith("user: skipped 2 rows beyond the vocabulary")
    assert lines[6].endswith(f"{tmp_path}/out/<table>.safetensors")
    assert lines[7].endswith(f"{tmp_path}/out/relations/operators.parquet")

    command = [sys.executable, "-m", "projects.twhin.export", *arguments]
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert (again.returncode, again.stdout) == (2, "")
    (message,) = again.stderr.splitlines()  # the checks come before the log line of the export
    assert message.startswith(f"error: --out {tmp_path}/out ")
    assert "exists" in message
