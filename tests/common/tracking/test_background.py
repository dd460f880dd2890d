"""Runs trackers in threads of their own. The tests release the trackers that block."""

import logging
import threading
import time
from collections.abc import Callable

import pytest

import common.tracking.background
from common.errors import UserError
from common.tracking.background import BackgroundTracker
from common.tracking.measurement import Measurement


def train(step: int) -> Measurement:
    return Measurement(step, "train", None, {}, {})


class RecordingTracker:
    """Records the calls and their threads. log() blocks until `gate` is set."""

    def __init__(self, gate: threading.Event | None = None, fails_at: int | None = None) -> None:
        self.calls: list[int | str] = []
        self.threads = {threading.current_thread()}
        self.entered = threading.Event()
        self._gate = gate
        self._fails_at = fails_at

    def log(self, measurement: Measurement) -> None:
        self.threads.add(threading.current_thread())
        self.entered.set()
        if self._gate is not None:
            self._gate.wait(60)
        self.calls.append(measurement.step)
        if measurement.step == self._fails_at:
            raise OSError("the disk is full")

    def finish(self) -> None:
        self.threads.add(threading.current_thread())
        self.calls.append("finish")


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def finish(tracker: BackgroundTracker, timeout_in_s: float = 60.0) -> None:
    tracker.begin_finish()
    tracker.finish(time.monotonic() + timeout_in_s)


def test_all_calls_are_made_in_order_in_one_background_thread() -> None:
    built: list[RecordingTracker] = []

    def build() -> RecordingTracker:
        built.append(RecordingTracker())
        return built[0]

    tracker = BackgroundTracker("mine", build)
    for step in range(100):
        tracker.log(train(step))
    finish(tracker)
    assert built[0].calls == [*range(100), "finish"]
    (thread,) = built[0].threads
    assert thread is not threading.current_thread()
    assert thread.daemon


def test_a_tracker_that_blocks_delays_nothing_and_records_the_first_measurements(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(common.tracking.background, "_MAX_QUEUED", 5)
    gate = threading.Event()
    recording = RecordingTracker(gate)
    tracker = BackgroundTracker("mine", lambda: recording)
    tracker.log(train(0))
    assert recording.entered.wait(60)
    for step in range(1, 20):
        tracker.log(train(step))
    (warning,) = warnings(caplog)
    assert warning.startswith("Tracker mine ")
    assert "(5 measurements are queued) and was switched off at step 6" in warning
    gate.set()
    finish(tracker)
    assert recording.calls == [*range(6), "finish"]
    assert len(warnings(caplog)) == 1


@pytest.mark.parametrize("can_abort", [True, False])
def test_a_tracker_that_hangs_is_aborted_if_possible(caplog: pytest.LogCaptureFixture, can_abort: bool) -> None:
    gate = threading.Event()
    recording = RecordingTracker(gate)
    tracker = BackgroundTracker("mine", lambda: recording, abort=gate.set if can_abort else None)
    tracker.log(train(1))
    finish(tracker, 0.0)
    assert warnings(caplog) == ["Tracker mine did not finish in time; its last measurements are missing"]
    assert gate.is_set() == can_abort
    assert recording.calls == ([1, "finish"] if can_abort else [])
    gate.set()


def test_a_failure_is_one_warning_and_the_tracker_is_finished(caplog: pytest.LogCaptureFixture) -> None:
    recording = RecordingTracker(fails_at=2)
    tracker = BackgroundTracker("mine", lambda: recording)
    for step in range(1, 5):
        tracker.log(train(step))
    finish(tracker)
    assert recording.calls == [1, 2, "finish"]
    assert warnings(caplog) == ["Tracker mine failed at step 2 and was switched off: OSError: the disk is full"]


def fails_with(error: BaseException) -> Callable[[], RecordingTracker]:
    def build() -> RecordingTracker:
        raise error

    return build


@pytest.mark.parametrize("error", [ConnectionError("no server"), SystemExit("no server")])
def test_a_tracker_that_cannot_be_built_is_one_warning(caplog: pytest.LogCaptureFixture, error: BaseException) -> None:
    tracker = BackgroundTracker("mine", fails_with(error), build_timeout_in_s=60)
    tracker.log(train(1))
    finish(tracker)
    (warning,) = warnings(caplog)
    assert warning.startswith("Tracker mine could not be set up")
    assert warning.endswith(f": {type(error).__name__}: no server")


def test_a_user_error_is_raised_while_the_constructor_waits() -> None:
    with pytest.raises(UserError, match="no such experiment"):
        BackgroundTracker("mine", fails_with(UserError("no such experiment")), build_timeout_in_s=60)
