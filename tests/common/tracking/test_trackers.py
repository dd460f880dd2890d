import contextlib
import logging
import threading

import pytest

from common.errors import UserError
from common.tracking.measurement import Measurement
from common.tracking.metrics_file import MetricsFile, read_metrics
from common.tracking.trackers import Trackers, build_trackers


def train(step: int, **metrics: float | None) -> Measurement:
    return Measurement(step, "train", None, metrics, {"examples_per_second": 1000.5})


class RecordingTracker:
    """Records the calls, and raises an error in each of them if `fails`."""

    def __init__(self, fails: bool = False) -> None:
        self.calls: list[int | str] = []
        self._fails = fails

    def log(self, measurement: Measurement) -> None:
        self.calls.append(measurement.step)
        if self._fails:
            raise OSError("the disk is full")

    def finish(self) -> None:
        self.calls.append("finish")
        if self._fails:
            raise OSError("the disk is still full")


def test_a_failing_tracker_is_one_warning_and_the_others_continue(caplog):
    good, bad = RecordingTracker(), RecordingTracker(fails=True)
    trackers = Trackers()
    trackers.add("bad", lambda: bad)
    trackers.add("good", lambda: good)
    for step in (1, 2, 3):
        trackers.log(train(step))
    for _ in range(2):  # the second finish() does nothing
        trackers.finish()
        trackers.log(train(4))
    assert good.calls == [1, 2, 3, "finish"]
    assert bad.calls == [1, "finish"]
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "Tracker bad failed at step 1" in record.message
    assert "OSError: the disk is full" in record.message


def test_a_user_error_while_building_a_tracker_is_raised_by_add():
    def build() -> RecordingTracker:
        raise UserError("no such experiment")

    with pytest.raises(UserError, match="no such experiment"):
        Trackers().add("mine", build)


@pytest.mark.parametrize("is_interrupted", [False, True])
def test_trackers_that_hang_share_one_time_limit_which_is_zero_after_an_interrupt(monkeypatch, caplog, is_interrupted):
    monkeypatch.setattr("common.tracking.trackers._FINISH_TIMEOUT_IN_S", 60.0 if is_interrupted else 0.0)
    gate = threading.Event()

    class Hanging(RecordingTracker):
        def finish(self) -> None:
            gate.wait(60)

    trackers = Trackers()
    for name in ("one", "two"):
        trackers.add(name, Hanging)
    with contextlib.suppress(KeyboardInterrupt):
        try:
            if is_interrupted:
                raise KeyboardInterrupt
        finally:
            trackers.finish()
    gate.set()
    assert [record.message.split(";")[0] for record in caplog.records] == [
        "Tracker one did not finish in time",
        "Tracker two did not finish in time",
    ]


def test_without_trackers_all_methods_do_nothing(caplog):
    trackers = Trackers()
    trackers.log(train(1))
    trackers.sync()
    trackers.finish()
    assert trackers.run_id is None
    assert not caplog.records


def test_a_run_without_wandb_writes_only_its_metrics_file(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl")
    for step in (1, 2):
        file.append(train(step))
    file.close()
    trackers = build_trackers(tmp_path, None, {}, last_step=1)
    trackers.log(train(2, loss=0.5))
    trackers.finish()
    assert read_metrics(tmp_path / "metrics.jsonl") == [train(1), train(2, loss=0.5)]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_directory_that_cannot_be_written_is_one_warning(tmp_path, caplog):
    in_the_way = tmp_path / "run"
    in_the_way.write_text("a file")
    trackers = build_trackers(in_the_way, None, {}, last_step=0)
    trackers.log(train(1))
    trackers.finish()
    (record,) = caplog.records
    assert record.message.startswith(f"cannot write {in_the_way}/metrics.jsonl: File exists")


def test_a_follower_without_wandb_has_no_trackers_and_writes_nothing(tmp_path):
    trackers = build_trackers(tmp_path, None, {}, job_type="evaluate", group="abcd1234")
    trackers.log(train(1))
    trackers.finish()
    assert trackers.run_id is None
    assert list(tmp_path.iterdir()) == []
