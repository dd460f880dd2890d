"""W&B is real here, offline; what it recorded is read back with its own `wandb leet inspect`."""

import contextlib
import json
import logging
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from common.errors import ConfigError
from common.tracking.measurement import Measurement
from common.tracking.metrics_file import read_metrics
from common.tracking.trackers import build_trackers
from common.wandb import WandbConfig, check_key_file
from tests.support.faults import full_disk
from tests.support.root import ROOT

KEY = "0123456789" * 4

train = Measurement(10, "train", None, {"loss": 0.5, "never_seen": None}, {"examples_per_second": 99.5})
validation = Measurement(10, "evaluate", "validation", {"recap/auroc": 0.75, "n": 640}, {"complete": True})


@pytest.fixture(autouse=True)
def _a_stranger_to_wandb(tmp_path, monkeypatch):
    """No key, no settings, no network: a home and a working directory of our own, and time on a busy machine."""
    monkeypatch.setattr("common.tracking.trackers._FINISH_PATIENCE_IN_S", 120.0)
    for name in [name for name in os.environ if name.startswith("WANDB")]:
        monkeypatch.delenv(name)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "home" / ".netrc"))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def key_path(tmp_path):
    path = tmp_path / "secret"
    path.write_text(KEY + "\n")
    path.chmod(0o600)
    return path


def recorded(run_dir: Path) -> list[list[dict[str, Any]]]:
    """The records of each session, in the order of their starts."""
    sessions = []
    for directory in sorted((run_dir / "wandb").glob("offline-run-*")):  # names begin with the time
        command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(directory)]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        sessions.append([json.loads(line) for line in output.splitlines()])
    return sessions


def points(session: list[dict[str, Any]]) -> list[dict[str, Any]]:
    items = [record["history"]["item"] for record in session if record["type"] == "history"]
    return [{key: value for key, value in item.items() if not key.startswith("_")} for item in items]


def children() -> dict[int, str]:
    """Names of our child processes that have not ended, by id."""
    found = [pid for path in Path("/proc/self/task").glob("*/children") for pid in path.read_text().split()]
    alive = [pid for pid in found if Path(f"/proc/{pid}/cmdline").read_bytes()]
    return {int(pid): Path(f"/proc/{pid}/comm").read_text().strip() for pid in alive}


@contextlib.contextmanager
def begun() -> Iterator[threading.Event]:
    """An event that is set as soon as W&B has begun a session."""
    begun = threading.Event()

    class Listening(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage().startswith("Weights & Biases: "):
                begun.set()

    handler, logger = Listening(), logging.getLogger("common.tracking.wandb")
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    yield begun
    logger.removeHandler(handler)
    logger.setLevel(level)


def wandb_process() -> int:
    (pid,) = [pid for pid, name in children().items() if name == "wandb-core"]
    return pid


def said(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """Ours; pytest also sees what wandb keeps in its own log file."""
    return [record for record in caplog.records if record.name.startswith("common.")]


def files_with_the_key(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]


def test_an_offline_run(tmp_path, monkeypatch, key_path, capfd, caplog):
    caplog.set_level("INFO")
    monkeypatch.setenv("WANDB_MODE", "offline")
    environment, hooks = dict(os.environ), (sys.exit, sys.excepthook)
    shown = WandbConfig(project="recap", name="first", tags=["a", "b"], notes="why", metadata={"ticket": 7})
    config = shown.model_copy(update={"key_path": str(key_path)})
    trackers = build_trackers(tmp_path / "run", config, {"model": {"units": [8, 4]}}, 0)
    trackers.log(train)
    trackers.log(validation)
    trackers.finish()

    (session,) = recorded(tmp_path / "run")
    assert points(session) == [
        {"trainer/global_step": 10, "train/loss": 0.5, "train/timing/examples_per_second": 99.5},
        {"trainer/global_step": 10}
        | {"evaluate/validation/recap/auroc": 0.75, "evaluate/validation/n": 640}
        | {"evaluate/validation/timing/complete": True},
    ]
    metrics = [record["metric"] for record in session if record["type"] == "metric"]
    assert [metric.get("name", metric.get("glob_name")) for metric in metrics] == ["trainer/global_step", "*"]
    assert metrics[1]["step_metric"] == "trainer/global_step"
    run = next(record["run"] for record in session if record["type"] == "run")
    assert run["run_id"] == trackers.run_id
    assert (run["project"], run["display_name"], run["notes"]) == ("recap", "first", "why")
    assert run["tags"] == ["a", "b"]
    assert run["config"]["update"]["model"] == {"units": [8, 4]}
    assert run["config"]["update"]["metadata"] == {"ticket": 7}

    assert read_metrics(tmp_path / "run" / "metrics.jsonl") == [train, validation]
    (record,) = said(caplog)
    assert "offline" in record.message
    assert str(trackers.run_id) in record.message
    assert capfd.readouterr() == ("", "")
    assert dict(os.environ) == environment
    assert (sys.exit, sys.excepthook) == hooks
    assert not any("wandb" in name for name in children().values())
    assert files_with_the_key(tmp_path) == [key_path]


def test_a_resume_continues_the_run_and_sends_nothing_twice(tmp_path, caplog):
    caplog.set_level("INFO")
    ids = []
    for last_step, steps in ((0, (10, 20, 30)), (10, (20, 30, 40))):
        trackers = build_trackers(tmp_path, WandbConfig(), {}, last_step)
        ids.append(trackers.run_id)
        for step in steps:
            trackers.log(Measurement(step, "train", None, {"loss": step / 100}, {}))
            if step == 20 and last_step == 10:  # the evaluation that the first one had not come to
                trackers.log(Measurement(step, "evaluate", "test", {"rce": 1.0}, {}))
        with contextlib.suppress(RuntimeError):
            try:
                if last_step == 0:
                    raise RuntimeError
            finally:
                trackers.finish()

    assert ids[0] == ids[1]
    first, second = recorded(tmp_path)
    assert [point["trainer/global_step"] for point in points(first)] == [10, 20, 30]
    assert points(second) == [
        {"trainer/global_step": 20, "evaluate/test/rce": 1.0},
        {"trainer/global_step": 40, "train/loss": 0.4},
    ]
    assert [record["exit"].get("exit_code", 0) for record in first + second if record["type"] == "exit"] == [1, 0]
    for session in (first, second):
        assert {record["run"]["run_id"] for record in session if record["type"] == "run"} == {ids[0]}
    sent = {"train": 40, "evaluate/test": 20}
    assert json.loads((tmp_path / "wandb.json").read_text()) == {"run_id": ids[0], "sent": sent}
    assert "no API key was found" in said(caplog)[0].message


_KILLED = """
import os, signal, sys
from pathlib import Path
from common.tracking.measurement import Measurement
from common.tracking.trackers import build_trackers
from common.wandb import WandbConfig
from tests.common.test_wandb import begun

with begun() as has_begun:
    trackers = build_trackers(Path(sys.argv[1]), WandbConfig(), {}, 0)
    assert has_begun.wait(60)
for step in (10, 20, 30):  # handed over, or waiting
    trackers.log(Measurement(step, "train", None, {"loss": step / 100}, {}))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_kill_kept_from_an_offline_session_is_in_the_next(tmp_path):
    killed = subprocess.run([sys.executable, "-c", _KILLED, str(tmp_path)], cwd=ROOT, timeout=120, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    trackers = build_trackers(tmp_path, WandbConfig(), {}, 20)
    for step in (30, 40):
        trackers.log(Measurement(step, "train", None, {"loss": step / 100}, {}))
    trackers.finish()
    _, second = recorded(tmp_path)
    assert [point["trainer/global_step"] for point in points(second)] == [10, 20, 30, 40]


def test_an_unreachable_host_is_one_warning(tmp_path, monkeypatch, key_path, caplog, capfd):
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "2")
    config = WandbConfig(host="http://127.0.0.1:9", key_path=str(key_path), project="recap")
    trackers = build_trackers(tmp_path / "run", config, {}, 0)
    trackers.log(train)
    trackers.finish()
    (record,) = said(caplog)
    assert "Weights & Biases could not be set up; going on without it" in record.message
    assert "connection refused" in record.message
    assert capfd.readouterr() == ("", "")
    assert read_metrics(tmp_path / "run" / "metrics.jsonl") == [train]
    assert not any("wandb" in name for name in children().values())
    assert "WANDB_SERVICE" not in os.environ
    assert files_with_the_key(tmp_path) == [key_path]


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP])
def test_a_wandb_process_that_dies_or_hangs_is_one_warning(tmp_path, monkeypatch, caplog, fault):
    monkeypatch.setattr("common.tracking.trackers._FINISH_PATIENCE_IN_S", 5.0 if fault == signal.SIGKILL else 0.5)
    with begun() as has_begun:
        trackers = build_trackers(tmp_path, WandbConfig(), {}, 0)
        assert has_begun.wait(60)
    pid = wandb_process()
    os.kill(pid, fault)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WSTOPPED | os.WNOWAIT)
    for measurement in (train, validation) * 500:  # more than a socket takes
        trackers.log(measurement)
    trackers.finish()
    (warning,) = [record.message for record in said(caplog) if record.levelname == "WARNING"]
    expected = "did not end in time" if fault == signal.SIGSTOP else "failed at step 10 and is switched off"
    assert warning.startswith(f"Tracker Weights & Biases {expected}")
    assert read_metrics(tmp_path / "metrics.jsonl") == [train, validation] * 500
    ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert ended is not None
    assert ended.si_status == signal.SIGKILL
    assert json.loads((tmp_path / "wandb.json").read_text())["sent"] == {}


def test_a_full_disk_is_one_warning_and_the_next_session_has_all_points(tmp_path, caplog):
    with begun() as has_begun:
        trackers = build_trackers(tmp_path, WandbConfig(), {}, 0)
        assert has_begun.wait(60)
    with full_disk(30_000):
        for step in range(10, 400, 10):
            trackers.log(Measurement(step, "train", None, {"loss": step / 100}, {}))
        trackers.finish()
    (warning,) = [record.message for record in said(caplog) if record.levelname == "WARNING"]
    assert warning.startswith("Tracker Weights & Biases failed at step 10 and is switched off: OSError: ")
    trackers = build_trackers(tmp_path, WandbConfig(), {}, 390)
    trackers.finish()
    assert [point["trainer/global_step"] for point in points(recorded(tmp_path)[-1])] == list(range(10, 400, 10))


def test_a_server_that_accepts_and_never_answers_holds_nobody_up(tmp_path, monkeypatch, key_path, caplog):
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "1")
    with socket.create_server(("127.0.0.1", 0)) as server:
        config = WandbConfig(host=f"http://127.0.0.1:{server.getsockname()[1]}", key_path=str(key_path))
        trackers = build_trackers(tmp_path / "run", config, {}, 0)
        trackers.log(train)
        assert read_metrics(tmp_path / "run" / "metrics.jsonl") == [train]
        trackers.finish()
    (record,) = said(caplog)
    assert "Weights & Biases could not be set up; going on without it" in record.message
    assert not any("wandb" in name for name in children().values())


def test_the_id_of_the_checkpoint_is_used_where_the_directory_has_none(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    for given, used in (("abcd1234", "abcd1234"), ("another1", "abcd1234")):
        trackers = build_trackers(tmp_path, WandbConfig(), {}, 0, run_id=given)
        trackers.finish()
        assert trackers.run_id == used


def test_a_damaged_run_file_is_one_warning(tmp_path, caplog):
    (tmp_path / "wandb.json").write_text('{"run_id": "abc')
    build_trackers(tmp_path, WandbConfig(), {}, 0).finish()
    (record,) = said(caplog)
    assert "wandb.json is damaged; remove it to start a new W&B run" in record.message


def test_a_missing_package_is_one_warning(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "wandb", None)  # import raises ModuleNotFoundError
    build_trackers(tmp_path, WandbConfig(), {}, 0).finish()
    (record,) = said(caplog)
    assert "could not be set up" in record.message


def test_the_package_is_not_imported_before_a_run_uses_it():
    code = "import sys, common.wandb, common.tracking.trackers; print('wandb' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert output.stdout == "False\n"


def test_a_host_is_a_url():
    with pytest.raises(ValueError, match=r"expected a URL like https://api\.wandb\.ai"):
        WandbConfig(host="api.wandb.ai")


def test_a_key_file_in_the_home_directory(tmp_path, key_path):
    key_path.rename(tmp_path / "home" / "key")
    check_key_file(WandbConfig(key_path="~/key"))


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o610])
def test_a_key_file_that_others_may_use(key_path, mode):
    key_path.chmod(mode)
    with pytest.raises(ConfigError) as raised:
        check_key_file(WandbConfig(key_path=str(key_path)))
    assert f"{key_path}: has mode {mode:o}" in str(raised.value)
    assert f"chmod 600 {key_path}" in str(raised.value)
    assert stat.S_IMODE(key_path.stat().st_mode) == mode


@pytest.mark.parametrize(
    ("content", "complaint"),
    [(b" \n", "holds no words"), (b"my key\n", "holds 2 words"), (b"\xff\xfe", "text")],
)
def test_a_key_file_that_holds_no_key(key_path, content, complaint):
    key_path.write_bytes(content)
    with pytest.raises(ConfigError, match=complaint) as raised:
        check_key_file(WandbConfig(key_path=str(key_path)))
    assert "my key" not in str(raised.value)


def test_no_key_file(tmp_path):
    check_key_file(WandbConfig())
    with pytest.raises(ConfigError, match=r"nowhere: no such file.*chmod 600"):
        check_key_file(WandbConfig(key_path=str(tmp_path / "nowhere")))
    with pytest.raises(ConfigError, match="not a file"):
        check_key_file(WandbConfig(key_path=str(tmp_path)))
