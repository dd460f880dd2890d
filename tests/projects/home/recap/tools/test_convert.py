"""Runs the command as a user does. conversion/test_files.py tests the conversion of a single file."""

import contextlib
import errno
import fcntl
import os
import re
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
from tests.support.preload import preloaded
from tests.support.programs import TIMEOUT_IN_S, wait_for_line
from tests.support.root import ROOT

PARTS = {"2023/02/01/00": "part-00000.gz", "2023/02/01/01": "part-00001.tfrecord.gz"}
TRUNCATED, REFUSED = "2023/02/01/02/part-00002.gz", "2023/02/01/03/part-00003.gz"
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


class FinishedProcess(NamedTuple):
    """Exit status and output of the command."""

    status: int
    stdout: str
    stderr: str


@contextlib.contextmanager
def started(*arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """Start the command in its own session, and kill the remaining processes at the end."""
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


def run(*arguments: str) -> FinishedProcess:
    with started(*arguments) as process:
        stdout, stderr = process.communicate(timeout=TIMEOUT_IN_S)
    return FinishedProcess(process.returncode, stdout, stderr)


def files(folder: Path) -> list[str]:
    """Return the paths of all visible files."""
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(str(path) for path in paths if not path.name.startswith("."))


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob(".*") if path.name != ".conversion"]


class Converted(NamedTuple):
    """A run of the command on files of four hours, two of which are invalid."""

    folder: Path
    arguments: list[str]
    result: FinishedProcess

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
        (TRUNCATED, (WRITTEN_BY_TENSORFLOW / "part-00000.gz").read_bytes()[:-100]),
        (REFUSED, (WRITTEN_BY_TENSORFLOW / "refused-short.tfrecord").read_bytes()),
    ):
        (folder / "in" / name).parent.mkdir()
        (folder / "in" / name).write_bytes(data)
    text = YAML.format(inputs=folder / "in", schema=SCHEMA, continuous=CONTINUOUS, binary=BINARY)
    (folder / "run.yaml").write_text(text)
    arguments = ["--config", str(folder / "run.yaml"), "--out", str(folder / "out"), "--processes", "2"]
    return Converted(folder, arguments, run(*arguments))


def num_missing(feature: str) -> int:
    """Return the number of valid records that lack a feature."""
    return sum(int((read_by_tensorflow(name)[feature] == 0).all(axis=1).sum()) for name in PARTS.values())


def test_invalid_files_are_reported_and_the_others_converted(converted):
    status, stdout, stderr = converted.result
    assert status == 1
    assert files(converted.out) == [
        "2023/02/01/00/part-00000.parquet",
        "2023/02/01/01/part-00001.parquet",
        "schema.json",
    ]
    assert hidden(converted.out) == []
    lines = stdout.splitlines()
    assert lines[0].startswith("converted      2 file(s), 164 records, ")
    missing = [line for line in lines if " is missing in " in line]
    assert len(missing) == 11
    assert any(f" user.twhin is missing in {num_missing('user.twhin') / 164:.1%} " in line for line in missing)
    lines = [line for line in lines if line not in missing]
    assert lines[1] == "not converted  2 file(s)"
    truncated, refused = (converted.folder / "in" / name for name in (TRUNCATED, REFUSED))
    assert lines[2].startswith(f"  {truncated}: record ")
    assert "truncated or corrupt" in lines[2]
    assert lines[3].startswith(f"  {refused}: record 1 (counted from 0): feature 'home.cont': ")
    assert {"float_list of length 6", "float_list of length 7"} <= set(re.findall(r"float_list of length \d", lines[3]))
    assert stderr.count("WARNING not converted: ") == 2
    assert "Traceback" not in stderr


@pytest.mark.faults
def test_the_same_command_converts_the_remaining_files(converted, tmp_path):
    """Continues in a copy of the output directory. The paths of the sources stay the same."""
    out = tmp_path / "out"
    shutil.copytree(converted.out, out)
    before = {name: (out / name).stat().st_mtime_ns for name in files(out)}
    truncated = converted.folder / "in" / TRUNCATED
    damaged = truncated.read_bytes()
    truncated.write_bytes((WRITTEN_BY_TENSORFLOW / "part-00000.gz").read_bytes())
    refused = (converted.folder / "in" / REFUSED).rename(tmp_path / "refused")
    try:
        status, stdout, stderr = run(*converted.arguments, "--out", str(out))
    finally:
        truncated.write_bytes(damaged)
        refused.rename(converted.folder / "in" / REFUSED)
    assert status == 0, stderr
    assert stdout.startswith("converted      1 file(s), 120 records, ")
    assert "\nup to date     2 file(s)\n" in stdout
    assert "not converted" not in stdout
    assert set(files(out)) - set(before) == {"2023/02/01/02/part-00002.parquet"}
    parquet = [name for name in before if name != "schema.json"]
    assert {name: (out / name).stat().st_mtime_ns for name in parquet} == {name: before[name] for name in parquet}


def test_training_reads_what_tensorflow_read(converted):
    """Uses the two configuration lines that the report gives."""
    *_, advice, inputs, schema = converted.result.stdout.splitlines()
    assert "remove renamed_features and truncate_and_slice" in advice
    keys = [line.strip().replace(": ", "=", 1) for line in (inputs, schema)]
    overrides = [*(f"train_data.{key}" for key in keys), "train_data.preprocess=null"]
    config = load_config_from_yaml(RecapConfig, converted.folder / "run.yaml", overrides)
    dataset = RecapDataset.open(config.train_data, ["like", "reply"], "train_data", evaluation=True)
    batches = [positioned.batch for positioned in dataset.reader(0, 1).evaluate()]
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


# --- Signals and killed processes ---


@pytest.fixture
def long_conversion(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """Start the command on an invalid file, which it reports, and then on a file that takes long."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "0.gz").write_bytes(b"")
    data = (WRITTEN_BY_TENSORFLOW / "part-00000.gz").read_bytes()
    (tmp_path / "in" / "1.gz").write_bytes(data * 3000)
    arguments = ["--schema", str(SCHEMA), "--inputs", str(tmp_path / "in"), "--out", str(tmp_path / "out")]
    with started(*arguments, "--processes", "1") as process:
        wait_for_line(process, "not converted: .*0.gz: ")
        yield process


def workers(process: "subprocess.Popen[str]") -> list[int]:
    """Return the ids of the worker processes."""
    pids = [
        int(pid)
        for children in Path(f"/proc/{process.pid}/task").glob("*/children")
        for pid in children.read_text().split()
    ]
    return [pid for pid in pids if b"--multiprocessing-fork" in Path(f"/proc/{pid}/cmdline").read_bytes()]


@pytest.mark.faults
@pytest.mark.parametrize(
    ("number", "status", "message"),
    [
        (signal.SIGINT, 130, r"interrupted.* converts the remaining files\.?\n"),
        (signal.SIGTERM, 143, r"received SIGTERM; exiting\.\n"),
        (signal.SIGHUP, 129, r"received SIGHUP; exiting\.\n"),
    ],
)
def test_a_signal_ends_the_command_and_leaves_no_partial_file(number, status, message, long_conversion, tmp_path):
    """SIGINT goes to all processes, as Ctrl-C in a terminal does."""
    if number == signal.SIGINT:
        os.killpg(long_conversion.pid, number)
    else:
        long_conversion.send_signal(number)
    stdout, stderr = long_conversion.communicate(timeout=TIMEOUT_IN_S)
    assert (long_conversion.returncode, stdout) == (status, "")
    assert re.fullmatch(message, stderr)
    assert files(tmp_path / "out") == ["schema.json"]
    assert hidden(tmp_path / "out") == []


@pytest.mark.faults
def test_a_killed_worker_is_reported(long_conversion, tmp_path):
    (worker,) = workers(long_conversion)
    os.kill(worker, signal.SIGKILL)
    stdout, stderr = long_conversion.communicate(timeout=TIMEOUT_IN_S)
    assert (long_conversion.returncode, stdout) == (2, "")
    assert stderr.startswith("error: a worker process was killed")
    assert "--processes" in stderr
    assert "Traceback" not in stderr
    assert files(tmp_path / "out") == ["schema.json"]


@pytest.mark.faults
def test_workers_exit_when_the_main_process_is_killed(long_conversion, tmp_path):
    (worker,) = workers(long_conversion)
    descriptor = os.pidfd_open(worker)
    try:
        long_conversion.kill()
        assert select.select([descriptor], [], [], TIMEOUT_IN_S)[0], "the worker is still running"
    finally:
        os.close(descriptor)
    assert files(tmp_path / "out") == ["schema.json"]


# --- User errors, found before any worker starts ---


def user_error(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    """Run the command in this process and return the message of its UserError."""
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
        (["--schema", "b.json", "--inputs", "x", "--set", "a=b"], "--set and --data_set need --config"),
        (["--schema", "b.json", "--inputs", "x", "--data_set", "train_data"], "--set and --data_set need --config"),
        (["--config", "a.yaml", "--processes", "0"], "--processes: '0'"),
        (["--schema", "nowhere.json", "--inputs", "x"], "nowhere.json"),
    ],
)
def test_an_invalid_command_line_is_an_error(arguments, message, tmp_path, monkeypatch):
    assert message in user_error(monkeypatch, *arguments, "--out", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_an_unknown_data_set_is_an_error(converted, monkeypatch):
    message = user_error(monkeypatch, *converted.arguments, "--data_set", "validation_data.test")
    assert message.startswith("--data_set validation_data.test: not in ")
    assert message.endswith("which has train_data, validation_data.validation")


def by_date(data_root: Path) -> list[str]:
    """Return overrides that make the data set select files by date."""
    dated = f"train_data.explicit_date_inputs={{data_root: {data_root}, end_date: 2023-02-01, days: 1}}"
    return ["--set", "train_data.inputs=null", "--set", dated]


@pytest.mark.faults
def test_files_by_date_keep_their_folders_and_an_invalid_file_keeps_its_earlier_output(converted, tmp_path):
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
    assert f"({output}.parquet from an earlier conversion is kept)" in stdout
    assert f"\n  explicit_date_inputs: {{data_root: {out}, ...}}\n" in stdout
    assert files(out) == files(converted.out)


def test_outputs_that_a_data_set_by_date_would_not_find_are_an_error(converted, tmp_path, monkeypatch):
    inputs = ["--inputs", str(converted.folder / "in/2023"), "--out", str(tmp_path / "out")]
    message = user_error(monkeypatch, *converted.arguments, *by_date(tmp_path), *inputs)
    assert message.startswith(f"--inputs {converted.folder}/in/2023: explicit_date_inputs ")
    assert " YYYY/MM/DD " in message
    assert f" {tmp_path}/out/02/01/00/part-00000.parquet. " in message


def test_a_file_is_not_converted_to_two_outputs(converted, monkeypatch):
    message = user_error(monkeypatch, *converted.arguments, "--inputs", str(converted.folder / "in/2023"))
    output = converted.out / "2023/02/01/00/part-00000.parquet"
    assert message.startswith(f"{output} was converted from {converted.folder}/in/2023/02/01/00/part-00000.gz, ")
    assert f" {converted.out}/02/01/00/part-00000.parquet " in message
    assert message.endswith("Give the earlier --inputs, or another --out")


def test_another_format_in_the_same_directory_is_an_error(converted, monkeypatch):
    """The inputs have no output yet, so the format of the directory is compared."""
    inputs = ["--inputs", str(WRITTEN_BY_TENSORFLOW / "part-00002.tfrecords")]
    for other in (["--float16"], ["--lists"], ["--set", "train_data.preprocess=null"]):
        message = user_error(monkeypatch, *converted.arguments, *inputs, *other)
        assert message.startswith(f"--out {converted.out}: ")
        assert "a different schema, " in message


@pytest.mark.faults
def test_a_directory_without_outputs_accepts_another_format(converted, tmp_path):
    """Covers a first conversion with a wrong schema, and a file whose name cannot be written."""
    source = tmp_path / "in"
    source.mkdir()
    shutil.copy(WRITTEN_BY_TENSORFLOW / "refused-short.tfrecord", source)
    shutil.copy(WRITTEN_BY_TENSORFLOW / "part-00002.tfrecords", source / os.fsdecode(b"b\xff"))
    arguments = ["--inputs", str(source), "--out", str(tmp_path / "out")]
    status, stdout, stderr = run(*converted.arguments, *arguments)
    assert status == 1, stderr
    assert re.search(r"/b\?: .*not UTF-8", stdout)
    shutil.copy(WRITTEN_BY_TENSORFLOW / "part-00002.tfrecords", source)
    status, stdout, stderr = run(*converted.arguments, *arguments, "--lists")
    assert status == 1, stderr
    assert stdout.startswith("converted      1 file(s)")


def test_a_second_conversion_to_the_same_directory_is_an_error(converted, monkeypatch):
    inputs = ["--inputs", str(WRITTEN_BY_TENSORFLOW / "part-00002.tfrecords")]
    with (converted.out / ".conversion").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        message = user_error(monkeypatch, *converted.arguments, *inputs)
    assert message.startswith(f"--out {converted.out}: another conversion is writing ")


def test_a_schema_from_elsewhere_is_not_overwritten(converted, tmp_path, monkeypatch):
    (tmp_path / "schema.json").write_text("mine")
    message = user_error(monkeypatch, *converted.arguments, "--out", str(tmp_path))
    assert message.startswith(f"{tmp_path}/schema.json exists ")
    assert (tmp_path / "schema.json").read_text() == "mine"


def test_an_output_directory_that_is_a_file_is_an_error(converted, tmp_path, monkeypatch):
    (tmp_path / "out").touch()
    message = user_error(monkeypatch, *converted.arguments, "--out", str(tmp_path / "out"))
    assert message.startswith(f"--out {tmp_path}/out exists and is not a directory")
    message = user_error(monkeypatch, *converted.arguments, "--out", str(tmp_path / "out" / "deeper"))
    assert message.startswith(f"--out {tmp_path}/out/deeper: ")
    assert message.endswith("Not a directory")


def test_a_folder_that_cannot_be_created_is_an_error_before_the_conversion(converted, tmp_path, monkeypatch):
    (tmp_path / "2023").touch()
    message = user_error(monkeypatch, *converted.arguments, "--out", str(tmp_path))
    assert message.startswith(f"--out {tmp_path}: cannot create the folder {tmp_path}/2023/02/01/00: ")
    assert files(tmp_path) == ["2023", "schema.json"]


@pytest.mark.faults
@pytest.mark.parametrize("fault", [{"flock": 0}, {"flock": errno.ENOLCK}])
def test_a_directory_without_locks_is_converted_to_with_a_warning(converted, tmp_path, monkeypatch, fault):
    """The directory is a link to one that does not exist yet."""
    (tmp_path / "link").symlink_to("out")
    for name, value in preloaded(fault).items():
        monkeypatch.setenv(name, value)
    inputs = ["--inputs", str(WRITTEN_BY_TENSORFLOW / "part-00002.tfrecords")]
    status, stdout, stderr = run(*converted.arguments, *inputs, "--out", str(tmp_path / "link"))
    assert status == 0, stderr
    assert f"--out {tmp_path}/link: never run two conversions here at a time" in stderr
    assert stdout.startswith("converted      1 file(s)")
    assert files(tmp_path / "out") == ["part-00002.parquet", "schema.json"]
