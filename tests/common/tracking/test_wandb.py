"""These tests run the real W&B, offline. `wandb leet inspect` reads back what it has recorded."""

import contextlib
import dataclasses
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.errors import UserError
from common.tracking.measurement import Measurement
from common.tracking.metrics_file import MetricsFile, read_metrics
from common.tracking.trackers import build_trackers
from common.wandb import WandbConfig
from tests.support.faults import full_disk
from tests.support.root import ROOT
from tests.support.wandb_sessions import points, recorded

pytestmark = pytest.mark.faults


KEY = "0123456789" * 4

train = Measurement(10, "train", None, {"loss": 0.5, "never_seen": None}, {"examples_per_second": 99.5})
validation = Measurement(10, "evaluate", "validation", {"recap/auroc": 0.75, "n": 640}, {"complete": True})


@pytest.fixture(autouse=True)
def _isolated_from_the_users_wandb(tmp_path, monkeypatch):
    """Hide the user's key and settings: set a temporary home and working directory. Allow time on a busy machine."""
    monkeypatch.setattr("common.tracking.trackers._FINISH_TIMEOUT_IN_S", 120.0)
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


def children() -> dict[int, str]:
    """Return the names of the child processes that are running, by process id."""
    found: dict[int, str] = {}
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # threads and processes end in the meantime
            for pid in (thread / "children").read_text().split():
                if Path(f"/proc/{pid}/cmdline").read_bytes():
                    found[int(pid)] = Path(f"/proc/{pid}/comm").read_text().strip()
    return found


@contextlib.contextmanager
def session_started() -> Iterator[threading.Event]:
    """Yield an event that is set when W&B has started a session."""
    started = threading.Event()

    class Listening(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage().startswith("Weights & Biases: "):
                started.set()

    handler, logger = Listening(), logging.getLogger("common.tracking.wandb")
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    yield started
    logger.removeHandler(handler)
    logger.setLevel(level)


def wandb_process() -> int:
    (pid,) = [pid for pid, name in children().items() if name == "wandb-core"]
    return pid


def project_records(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """Return the log records of this project. pytest also captures those that wandb writes to its own log file."""
    return [record for record in caplog.records if record.name.startswith("common.")]


def files_with_the_key(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]


def test_an_offline_run_records_everything_and_writes_no_key(tmp_path, monkeypatch, key_path, capfd, caplog):
    caplog.set_level("INFO")
    monkeypatch.setenv("WANDB_MODE", "offline")
    environment, hooks = dict(os.environ), (sys.exit, sys.excepthook)
    settings = WandbConfig(project="recap", name="first", tags=["a", "b"], notes="why", metadata={"ticket": 7})
    config = settings.model_copy(update={"key_path": str(key_path)})
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
    (record,) = project_records(caplog)
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
            if step == 20 and last_step == 10:  # an evaluation that the first session had not reached
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
    content = json.loads((tmp_path / "wandb.json").read_text())
    assert (content["run_id"], content["sent"]) == (ids[0], {"train": 40})
    assert content["sent_steps"] == {"evaluate/test": [20]}
    assert "no API key was found" in project_records(caplog)[0].message


_KILLED = """
import os, signal, sys, time
from pathlib import Path
from common.tracking.measurement import Measurement
from common.tracking.trackers import build_trackers
from common.wandb import WandbConfig
from tests.common.tracking.test_wandb import session_started

with session_started() as started:
    trackers = build_trackers(Path(sys.argv[1]), WandbConfig(), {}, 0)
    assert started.wait(60)
padding = {f"metric {index}": 0.5 for index in range(int(sys.argv[2]))}
for step in (10, 20, 30):  # sent to W&B, or still queued
    trackers.log(Measurement(step, "train", None, {"loss": step / 100, **padding}, {}))
    trackers.log(Measurement(step, "evaluate", "test", {"rce": step / 100}, {}))
while padding and not any(file.stat().st_size > 200_000 for file in Path(sys.argv[1]).glob("wandb/*/*.wandb")):
    time.sleep(0.01)  # until W&B's process has written the first points
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("num_metrics", [0, 3000], ids=["points in the buffer of the process", "points on disk"])
def test_every_point_is_in_one_session_if_an_offline_session_was_killed(tmp_path, num_metrics):
    command = [sys.executable, "-c", _KILLED, str(tmp_path), str(num_metrics)]
    killed = subprocess.run(command, cwd=ROOT, timeout=120, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    for last_step in (20, 40):  # the second resume has nothing to add
        trackers = build_trackers(tmp_path, WandbConfig(), {}, last_step)
        for step in (30, 40):
            trackers.log(Measurement(step, "train", None, {"loss": step / 100}, {}))
            trackers.log(Measurement(step, "evaluate", "test", {"rce": step / 100}, {}))
        trackers.finish()
    first, *others = [points(session) for session in recorded(tmp_path)]
    assert bool(first) == bool(num_metrics)
    everything = [*first, *(point for session in others for point in session)]
    for key in ("train/loss", "evaluate/test/rce"):
        assert sorted(point["trainer/global_step"] for point in everything if key in point) == [10, 20, 30, 40]


def test_an_evaluator_sends_an_earlier_step_after_a_later_one(tmp_path):
    for steps in ((30, 20), (20, 40)):
        trackers = build_trackers(tmp_path, WandbConfig(), {}, job_type="evaluate")
        for step in steps:
            trackers.log(dataclasses.replace(validation, step=step))
        trackers.finish()
    sessions = [[point["trainer/global_step"] for point in points(session)] for session in recorded(tmp_path)]
    assert sessions == [[30, 20], [40]]


def test_a_user_without_a_home_directory_is_tracked_offline(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "nowhere"))
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, "set so that it is restored")
        monkeypatch.delenv(name)
    trackers = build_trackers(tmp_path / "run", WandbConfig(), {}, 0)
    trackers.log(train)
    trackers.finish()
    [session] = recorded(tmp_path / "run")
    assert [point["trainer/global_step"] for point in points(session)] == [10]
    assert not (tmp_path / "nowhere").exists()


def test_an_unreachable_host_is_one_warning(tmp_path, monkeypatch, key_path, caplog, capfd):
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "2")
    config = WandbConfig(host="http://127.0.0.1:9", key_path=str(key_path), project="recap")
    trackers = build_trackers(tmp_path / "run", config, {}, 0)
    trackers.log(train)
    trackers.finish()
    (record,) = project_records(caplog)
    assert "Weights & Biases could not be set up" in record.message
    assert "connection refused" in record.message
    assert capfd.readouterr() == ("", "")
    assert read_metrics(tmp_path / "run" / "metrics.jsonl") == [train]
    assert not any("wandb" in name for name in children().values())
    assert "WANDB_SERVICE" not in os.environ
    assert files_with_the_key(tmp_path) == [key_path]


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP])
def test_a_wandb_process_that_dies_or_hangs_is_one_warning(tmp_path, monkeypatch, caplog, fault):
    monkeypatch.setattr("common.tracking.trackers._FINISH_TIMEOUT_IN_S", 5.0 if fault == signal.SIGKILL else 0.5)
    with session_started() as started:
        trackers = build_trackers(tmp_path, WandbConfig(), {}, 0)
        assert started.wait(60)
    pid = wandb_process()
    os.kill(pid, fault)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WSTOPPED | os.WNOWAIT)
    for measurement in (train, validation) * 500:  # more than a socket buffers
        trackers.log(measurement)
    trackers.finish()
    (warning,) = [record.message for record in project_records(caplog) if record.levelname == "WARNING"]
    expected = "did not finish in time" if fault == signal.SIGSTOP else "failed at step 10 and was switched off"
    assert warning.startswith(f"Tracker Weights & Biases {expected}")
    assert read_metrics(tmp_path / "metrics.jsonl") == [train, validation] * 500
    ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert ended is not None
    assert ended.si_status == signal.SIGKILL
    assert json.loads((tmp_path / "wandb.json").read_text())["sent"] == {}


def test_a_full_disk_is_one_warning_and_the_next_session_has_all_points(tmp_path, caplog):
    with session_started() as started:
        trackers = build_trackers(tmp_path, WandbConfig(), {}, 0)
        assert started.wait(60)
    with full_disk(30_000):
        for step in range(10, 400, 10):
            trackers.log(Measurement(step, "train", None, {"loss": step / 100}, {}))
        trackers.finish()
    (warning,) = [record.message for record in project_records(caplog) if record.levelname == "WARNING"]
    assert warning.startswith("Tracker Weights & Biases failed at step 10 and was switched off: OSError: ")
    trackers = build_trackers(tmp_path, WandbConfig(), {}, 390)
    trackers.finish()
    assert [point["trainer/global_step"] for point in points(recorded(tmp_path)[-1])] == list(range(10, 400, 10))


def test_a_server_that_accepts_connections_but_never_answers_delays_nothing(tmp_path, monkeypatch, key_path, caplog):
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "1")
    with socket.create_server(("127.0.0.1", 0)) as server:
        config = WandbConfig(host=f"http://127.0.0.1:{server.getsockname()[1]}", key_path=str(key_path))
        trackers = build_trackers(tmp_path / "run", config, {}, 0)
        trackers.log(train)
        assert read_metrics(tmp_path / "run" / "metrics.jsonl") == [train]
        trackers.finish()
    (record,) = project_records(caplog)
    assert "Weights & Biases could not be set up" in record.message
    assert not any("wandb" in name for name in children().values())


def test_the_run_id_of_the_checkpoint_is_used_if_the_directory_has_none(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    for in_checkpoint, used in (("abcd1234", "abcd1234"), ("another1", "abcd1234")):
        trackers = build_trackers(tmp_path, WandbConfig(), {}, 0, run_id=in_checkpoint)
        trackers.finish()
        assert trackers.run_id == used


def test_a_follower_sends_its_backlog_in_a_run_of_its_own_in_the_trainers_group(tmp_path):
    trainer_run = json.dumps({"run_id": "abcd1234", "sent": {}})
    (tmp_path / "wandb.json").write_text(trainer_run)
    metrics = MetricsFile(tmp_path / "metrics-evaluator.jsonl")
    metrics.append(validation)
    metrics.close()
    trackers = build_trackers(tmp_path, WandbConfig(), {}, job_type="evaluate", group="abcd1234")
    trackers.log(dataclasses.replace(validation, step=20))
    trackers.finish()
    (session,) = recorded(tmp_path)
    assert [point["trainer/global_step"] for point in points(session)] == [10, 20]
    run = next(record["run"] for record in session if record["type"] == "run")
    assert (run["run_group"], run["job_type"], run["run_id"]) == ("abcd1234", "evaluate", trackers.run_id)
    assert trackers.run_id != "abcd1234"
    follower_run = json.loads((tmp_path / "wandb-evaluator.json").read_text())
    assert follower_run["run_id"] == trackers.run_id
    assert follower_run["sent_steps"] == {"evaluate/validation": [10, 20]}
    assert (tmp_path / "wandb.json").read_text() == trainer_run
    assert not (tmp_path / "metrics.jsonl").exists()
    assert read_metrics(tmp_path / "metrics-evaluator.jsonl") == [validation]


def test_a_damaged_run_file_is_one_warning(tmp_path, caplog):
    (tmp_path / "wandb.json").write_text('{"run_id": "abc')
    build_trackers(tmp_path, WandbConfig(), {}, 0).finish()
    (record,) = project_records(caplog)
    assert f"{tmp_path}/wandb.json is damaged" in record.message
    assert "Remove it" in record.message


@pytest.mark.parametrize(
    ("name", "value"),
    [("WANDB_TAGS", "x" * 70), ("WANDB_RUN_ID", "a/b"), ("WANDB_CONSOLE", "foo"), ("WANDB_SILENT", "foo")],
)
def test_a_variable_that_wandb_refuses_is_a_user_error(tmp_path, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=r"refuses a setting in runtime\.wandb or a variable WANDB_\*: "):
        build_trackers(tmp_path / "run", WandbConfig(), {}, 0)


def test_a_host_that_wandb_refuses_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match=r"refuses .*base_url: .*URL"):
        build_trackers(tmp_path / "run", WandbConfig(host="http://[::1"), {}, 0)


def test_a_missing_package_is_one_warning(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "wandb", None)  # import raises ModuleNotFoundError
    build_trackers(tmp_path, WandbConfig(), {}, 0).finish()
    (record,) = project_records(caplog)
    assert "could not be set up" in record.message


def test_the_package_is_not_imported_before_a_run_uses_it():
    code = "import sys, common.wandb, common.tracking.trackers; print('wandb' in sys.modules)"
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True, timeout=120
    )
    assert output.stdout == "False\n"
