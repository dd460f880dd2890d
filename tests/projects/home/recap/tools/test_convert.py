"""The command, run as a user does. What it makes of a file is looked at in test_conversion.py."""

import contextlib
import fcntl
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from common.errors import UserError
from core.config.config_load import load_config_from_yaml
from projects.home.recap.config import RecapConfig
from projects.home.recap.data.dataset import RecapDataset
from projects.home.recap.tools import convert
from tests.projects.home.recap.tools.conversion.test_examples import SCHEMA, read_by_tensorflow
from tests.projects.home.recap.tools.conversion.test_tfrecords import WRITTEN_BY_TENSORFLOW
from tests.support.programs import TIMEOUT_IN_S, wait_for_line
from tests.support.root import ROOT

PARTS = {"2023/02/01/00": "part-00000.gz", "2023/02/01/01": "part-00001.tfrecord.gz"}
CUT, REFUSED = "2023/02/01/02/part-00002.gz", "2023/02/01/03/part-00003.gz"
CONTINUOUS, BINARY = 3, 4

YAML = """
training: {{save_dir: unused}}
train_data: &data
  inputs: {inputs}
  global_batch_size: 40
  lanes: 1
  seg_dense_schema:
    schema_path: {schema}
    renamed_features: &renamed
      continuous: home.cont
      binary: home.binary
      user_embedding: user.twhin
      meta__user_id: meta.user_id
  preprocess: &cut
    truncate_and_slice: {{continuous_feature_truncation: {continuous}, binary_feature_truncation: {binary}}}
  tasks: {{like: {{}}, reply: {{}}}}
  weight_column: weight
validation_data: {{validation: *data}}
model:
  multi_task_type: share_all
  featurization_config: {{double_norm_log_config: {{batch_norm_config: {{}}, layer_norm_config: {{}}}}}}
  backbone: {{mlp_config: {{layer_sizes: [4]}}}}
  tasks: {{like: {{mlp_config: &tower {{layer_sizes: [1]}}}}, reply: {{mlp_config: *tower}}}}
optimizer: {{adam: {{}}, single_task_learning_rate: {{constant: 0.001}}}}
"""


class Ended(NamedTuple):
    status: int
    stdout: str
    stderr: str


@contextlib.contextmanager
def started(*arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """The command, running in a session of its own; whatever is left of it is killed."""
    command = [sys.executable, "-m", "projects.home.recap.tools.convert", *arguments]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=TIMEOUT_IN_S)


def run(*arguments: str) -> Ended:
    with started(*arguments) as process:
        stdout, stderr = process.communicate(timeout=TIMEOUT_IN_S)
    return Ended(process.returncode, stdout, stderr)


def files(folder: Path) -> list[str]:
    """All that is visible."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(str(path) for path in found if not path.name.startswith("."))


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob(".*") if path.name != ".conversion"]


class Converted(NamedTuple):
    """Files of four hours, of which two are bad, and a run of the command."""

    folder: Path
    arguments: list[str]
    ended: Ended

    @property
    def out(self) -> Path:
        return self.folder / "out"


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    folder = tmp_path_factory.mktemp("converted")
    for hour, name in PARTS.items():
        (folder / "in" / hour).mkdir(parents=True)
        shutil.copy(WRITTEN_BY_TENSORFLOW / name, folder / "in" / hour)
    for name, data in (
        (CUT, (WRITTEN_BY_TENSORFLOW / "part-00000.gz").read_bytes()[:-100]),
        (REFUSED, (WRITTEN_BY_TENSORFLOW / "refused-short.tfrecord").read_bytes()),
    ):
        (folder / "in" / name).parent.mkdir()
        (folder / "in" / name).write_bytes(data)
    text = YAML.format(inputs=folder / "in", schema=SCHEMA, continuous=CONTINUOUS, binary=BINARY)
    (folder / "run.yaml").write_text(text)
    arguments = ["--config", str(folder / "run.yaml"), "--out", str(folder / "out"), "--processes", "2"]
    return Converted(folder, arguments, run(*arguments))


def num_missing(feature: str) -> int:
    return sum(int((read_by_tensorflow(name)[feature] == 0).all(axis=1).sum()) for name in PARTS.values())


def test_bad_files_are_named_and_the_others_converted(converted):
    status, stdout, stderr = converted.ended
    assert status == 1
    assert files(converted.out) == [
        "2023/02/01/00/part-00000.parquet",
        "2023/02/01/01/part-00001.parquet",
        "schema.json",
    ]
    assert hidden(converted.out) == []
    lines = stdout.splitlines()
    assert lines[0].startswith("converted      2 file(s), 164 records, ")
    missing = [line for line in lines if line.endswith(" of them, 0 there")]
    assert len(missing) == 11
    assert f"  user.twhin missing in {num_missing('user.twhin') / 164:.1%} of them, 0 there" in missing
    lines = [line for line in lines if line not in missing]
    assert lines[1] == "not converted  2 file(s)"
    cut, refused = (converted.folder / "in" / name for name in (CUT, REFUSED))
    assert lines[2].startswith(f"  {cut}: record ")
    assert "truncated or corrupt" in lines[2]
    assert lines[3] == (
        f"  {refused}: record 1 (counted from 0): feature 'home.cont': float_list of 6 found, float_list of 7 expected"
    )
    assert stderr.count("WARNING not converted: ") == 2
    assert "Traceback" not in stderr


def test_the_same_command_converts_what_is_missing(converted, tmp_path):
    """In a copy of what was made: the sources' paths stay."""
    out = tmp_path / "out"
    shutil.copytree(converted.out, out)
    before = {name: (out / name).stat().st_mtime_ns for name in files(out)}
    cut = converted.folder / "in" / CUT
    damaged = cut.read_bytes()
    cut.write_bytes((WRITTEN_BY_TENSORFLOW / "part-00000.gz").read_bytes())
    refused = (converted.folder / "in" / REFUSED).rename(tmp_path / "refused")
    try:
        status, stdout, stderr = run(*converted.arguments, "--out", str(out))
    finally:
        cut.write_bytes(damaged)
        refused.rename(converted.folder / "in" / REFUSED)
    assert status == 0, stderr
    assert stdout.startswith("converted      1 file(s), 120 records, ")
    assert "\ndone before    2 file(s)\n" in stdout
    assert "not converted" not in stdout
    assert set(files(out)) - set(before) == {"2023/02/01/02/part-00002.parquet"}
    parquet = [name for name in before if name != "schema.json"]
    assert {name: (out / name).stat().st_mtime_ns for name in parquet} == {name: before[name] for name in parquet}


def test_training_reads_what_tensorflow_read(converted):
    """By the two lines that the report gives."""
    assert converted.ended.stdout.splitlines()[-3].endswith("; leave renamed_features and truncate_and_slice out:")
    keys = [line.strip().replace(": ", "=", 1) for line in converted.ended.stdout.splitlines()[-2:]]
    overrides = [*(f"train_data.{key}" for key in keys), "train_data.preprocess=null"]
    config = load_config_from_yaml(RecapConfig, converted.folder / "run.yaml", overrides)
    dataset = RecapDataset.open(config.train_data, ["like", "reply"], "train_data", evaluation=True)
    batches = [placed.batch for placed in dataset.reader(0, 1).evaluate()]
    expected = [read_by_tensorflow(name) for name in PARTS.values()]
    truth = {name: np.concatenate([arrays[name] for arrays in expected]) for name in expected[0]}
    num_rows = 164
    assert len(truth["like"]) == num_rows

    def read(name: str) -> torch.Tensor:
        return torch.cat([getattr(batch, name) for batch in batches])[:num_rows]

    for name, theirs in (
        ("continuous", truth["home.cont"][:, :CONTINUOUS]),
        ("binary", truth["home.binary"][:, :BINARY].astype(np.float32)),
        ("discrete", truth["discrete"]),
        ("user_embedding", truth["user.twhin"]),
        ("author_embedding", truth["author_embedding"]),
        ("labels", np.concatenate([truth["like"], truth["reply"]], axis=1).astype(np.float32)),
        ("weights", np.repeat(truth["weight"], 2, axis=1)),
    ):
        torch.testing.assert_close(read(name), torch.from_numpy(theirs), rtol=0, atol=0, equal_nan=True)


# --- What ends it. ---


@pytest.fixture
def long_conversion(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """The command at a file of which it has for long; one before it is bad, whose line tells that work goes on."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "0.gz").write_bytes(b"")
    data = (WRITTEN_BY_TENSORFLOW / "part-00000.gz").read_bytes()
    (tmp_path / "in" / "1.gz").write_bytes(data * 3000)
    arguments = ["--schema", str(SCHEMA), "--inputs", str(tmp_path / "in"), "--out", str(tmp_path / "out")]
    with started(*arguments, "--processes", "1") as process:
        wait_for_line(process, "not converted: .*0.gz: .* the file is empty")
        yield process


def workers(process: "subprocess.Popen[str]") -> list[int]:
    """The processes that convert."""
    pids = [
        int(pid)
        for children in Path(f"/proc/{process.pid}/task").glob("*/children")
        for pid in children.read_text().split()
    ]
    return [pid for pid in pids if b"--multiprocessing-fork" in Path(f"/proc/{pid}/cmdline").read_bytes()]


@pytest.mark.parametrize(
    ("number", "status", "told"),
    [
        (signal.SIGINT, 130, "interrupted; the same command continues with the files that are left\n"),
        (signal.SIGTERM, 143, ""),
    ],
)
def test_a_signal_ends_it_and_leaves_nothing_half_made(number, status, told, long_conversion, tmp_path):
    """Sent to all its processes, as a terminal does with Ctrl-C."""
    if number == signal.SIGINT:
        os.killpg(long_conversion.pid, number)
    else:
        long_conversion.send_signal(number)
    stdout, stderr = long_conversion.communicate(timeout=TIMEOUT_IN_S)
    assert (long_conversion.returncode, stdout, stderr) == (status, "", told)
    assert files(tmp_path / "out") == ["schema.json"]
    assert hidden(tmp_path / "out") == []


def test_a_worker_that_is_killed_is_told(long_conversion, tmp_path):
    (worker,) = workers(long_conversion)
    os.kill(worker, signal.SIGKILL)
    stdout, stderr = long_conversion.communicate(timeout=TIMEOUT_IN_S)
    assert (long_conversion.returncode, stdout) == (2, "")
    assert stderr.startswith("error: a process that converted was killed, perhaps because memory ran out")
    assert "Traceback" not in stderr
    assert files(tmp_path / "out") == ["schema.json"]


def test_its_processes_end_with_it_however_it_ends(long_conversion, tmp_path):
    (worker,) = workers(long_conversion)
    descriptor = os.pidfd_open(worker)
    try:
        long_conversion.kill()
        assert select.select([descriptor], [], [], TIMEOUT_IN_S)[0], "the worker goes on"
    finally:
        os.close(descriptor)
    assert files(tmp_path / "out") == ["schema.json"]


# --- Mistakes: in this process, which then starts no other. ---


def mistake(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    monkeypatch.setattr(sys, "argv", ["convert", *arguments])
    with pytest.raises(UserError) as caught:
        convert.main()
    return str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "one of the arguments --config --schema is required"),
        (["--config", "a.yaml", "--schema", "b.json"], "--schema: not allowed with argument --config"),
        (["--schema", "b.json"], "--schema needs --inputs"),
        (["--schema", "b.json", "--inputs", "x", "--set", "a=b"], "--set and --data_set go with --config"),
        (["--schema", "b.json", "--inputs", "x", "--data_set", "train_data"], "--set and --data_set go with --config"),
        (["--config", "a.yaml", "--processes", "0"], "'0' is not a whole number >= 1"),
        (["--schema", "nowhere.json", "--inputs", "x"], "--schema: cannot read nowhere.json: No such file"),
    ],
)
def test_mistakes_of_the_command_line(arguments, message, tmp_path, monkeypatch):
    assert message in mistake(monkeypatch, *arguments, "--out", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_data_set_that_is_not_there(converted, monkeypatch):
    message = mistake(monkeypatch, *converted.arguments, "--data_set", "validation_data.test")
    assert message.startswith("--data_set validation_data.test: not in ")
    assert message.endswith("which has train_data, validation_data.validation")


def by_date(data_root: Path) -> list[str]:
    dated = f"train_data.explicit_date_inputs={{data_root: {data_root}, end_date: 2023-02-01, days: 1}}"
    return ["--set", "train_data.inputs=null", "--set", dated]


def test_files_by_date_keep_their_folders_and_a_bad_file_its_older_output(converted, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(converted.out, out)
    source, output = (folder / "2023/02/01/00/part-00000" for folder in (converted.folder / "in", out))
    whole = source.with_suffix(".gz").read_bytes()
    source.with_suffix(".gz").write_bytes(whole[:-50])
    try:
        status, stdout, _ = run(*converted.arguments, *by_date(converted.folder / "in"), "--out", str(out))
    finally:
        source.with_suffix(".gz").write_bytes(whole)
    assert status == 1
    assert f"({output}.parquet, made from it before, stays)" in stdout
    assert f"\n  explicit_date_inputs: {{data_root: {out}, ...}}\n" in stdout
    assert files(out) == files(converted.out)


def test_files_by_date_that_would_not_be_found(converted, tmp_path, monkeypatch):
    inputs = ["--inputs", str(converted.folder / "in/2023"), "--out", str(tmp_path / "out")]
    message = mistake(monkeypatch, *converted.arguments, *by_date(tmp_path), *inputs)
    assert "explicit_date_inputs looks into folders YYYY/MM/DD below its data_root, but the first file would" in message
    assert message.endswith("02/01/00/part-00000.parquet; let --inputs be the directory that the years are in")


def test_a_record_is_not_converted_to_two_places(converted, monkeypatch):
    message = mistake(monkeypatch, *converted.arguments, "--inputs", str(converted.folder / "in/2023"))
    made = converted.out / "2023/02/01/00/part-00000.parquet"
    assert message.startswith(f"{made}: was made from {converted.folder}/in/2023/02/01/00/part-00000.gz, which would ")
    assert message.endswith("as --inputs begins elsewhere; give --inputs as before, or another --out")


def test_another_layout_in_the_same_directory(converted, monkeypatch):
    """Also where no output is there yet that could tell."""
    inputs = ["--inputs", str(WRITTEN_BY_TENSORFLOW / "part-00002.tfrecords")]
    for other in (["--float16"], ["--lists"], ["--set", "train_data.preprocess=null"]):
        message = mistake(monkeypatch, *converted.arguments, *inputs, *other)
        assert message.startswith(f"--out {converted.out}: what is there was made with another schema, ")


def test_what_made_nothing_leaves_the_directory_to_another_layout(converted, tmp_path):
    """Such as a conversion by a wrong schema; and a name that can't be written is told as a bad file's."""
    source = tmp_path / "in"
    source.mkdir()
    shutil.copy(WRITTEN_BY_TENSORFLOW / "refused-short.tfrecord", source)
    shutil.copy(WRITTEN_BY_TENSORFLOW / "part-00002.tfrecords", source / os.fsdecode(b"b\xff"))
    arguments = ["--inputs", str(source), "--out", str(tmp_path / "out")]
    status, stdout, stderr = run(*converted.arguments, *arguments)
    assert status == 1, stderr
    assert "b?: pyarrow writes no file whose name is not UTF-8; rename it" in stdout
    shutil.copy(WRITTEN_BY_TENSORFLOW / "part-00002.tfrecords", source)
    status, stdout, stderr = run(*converted.arguments, *arguments, "--lists")
    assert status == 1, stderr
    assert stdout.startswith("converted      1 file(s)")


def test_two_conversions_at_once(converted, monkeypatch):
    inputs = ["--inputs", str(WRITTEN_BY_TENSORFLOW / "part-00002.tfrecords")]
    with (converted.out / ".conversion").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        message = mistake(monkeypatch, *converted.arguments, *inputs)
    assert message == f"--out {converted.out}: another conversion is writing there; wait, or give another --out"


def test_a_schema_of_somebody_else_is_not_overwritten(converted, tmp_path, monkeypatch):
    (tmp_path / "schema.json").write_text("mine")
    message = mistake(monkeypatch, *converted.arguments, "--out", str(tmp_path))
    assert message.startswith(f"{tmp_path}/schema.json: is there, with something else ")
    assert (tmp_path / "schema.json").read_text() == "mine"


def test_an_out_that_is_a_file(converted, tmp_path, monkeypatch):
    (tmp_path / "out").touch()
    message = mistake(monkeypatch, *converted.arguments, "--out", str(tmp_path / "out"))
    assert message == f"--out {tmp_path}/out: can't be written: File exists"
