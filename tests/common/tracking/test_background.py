"""A sink in a thread of its own; where it blocks, it is let go by the test."""

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


class Sink:
    """Notes the calls, and the threads that they are made in; blocks until `gate` is open."""

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


def test_all_calls_are_made_in_order_in_one_thread_of_its_own() -> None:
    trackers: list[Sink] = []

    def build() -> Sink:
        trackers.append(Sink())
        return trackers[0]

    tracker = BackgroundTracker("mine", build)
    for step in range(100):
        tracker.log(train(step))
    finish(tracker)
    assert trackers[0].calls == [*range(100), "finish"]
    (thread,) = trackers[0].threads
    assert thread is not threading.current_thread()
    assert thread.daemon


def test_a_sink_that_blocks_holds_nobody_up_and_keeps_what_came_first(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(common.tracking.background, "_MOST_WAITING", 5)
    gate = threading.Event()
    sink = Sink(gate)
    tracker = BackgroundTracker("mine", lambda: sink)
    tracker.log(train(0))
    assert sink.entered.wait(60)
    for step in range(1, 20):
        tracker.log(train(step))
    assert warnings(caplog) == ["Tracker mine takes no measurements (5 are waiting) and is switched off at step 6"]
    gate.set()
    finish(tracker)
    assert sink.calls == [*range(6), "finish"]
    assert len(warnings(caplog)) == 1


@pytest.mark.parametrize("helps", [True, False])
def test_a_sink_that_never_ends_is_abandoned(caplog: pytest.LogCaptureFixture, helps: bool) -> None:
    gate = threading.Event()
    sink = Sink(gate)
    tracker = BackgroundTracker("mine", lambda: sink, abandon=gate.set if helps else None)
    tracker.log(train(1))
    finish(tracker, 0.0)
    assert warnings(caplog) == ["Tracker mine did not end in time; what it was not handed is missing in it"]
    assert gate.is_set() == helps
    assert sink.calls == ([1, "finish"] if helps else [])
    gate.set()


def test_a_failure_is_one_warning_and_the_sink_is_finished(caplog: pytest.LogCaptureFixture) -> None:
    sink = Sink(fails_at=2)
    tracker = BackgroundTracker("mine", lambda: sink)
    for step in range(1, 5):
        tracker.log(train(step))
    finish(tracker)
    assert sink.calls == [1, 2, "finish"]
    assert warnings(caplog) == ["Tracker mine failed at step 2 and is switched off: OSError: the disk is full"]


def fails_with(error: BaseException) -> Callable[[], Sink]:
    def build() -> Sink:
        raise error

    return build


@pytest.mark.parametrize("error", [ConnectionError("nobody there"), SystemExit("nobody there")])
def test_a_sink_that_cannot_be_built_is_one_warning(caplog: pytest.LogCaptureFixture, error: BaseException) -> None:
    tracker = BackgroundTracker("mine", fails_with(error), patience_in_s=60)
    tracker.log(train(1))
    finish(tracker)
    (warning,) = warnings(caplog)
    assert warning == f"Tracker mine could not be set up; going on without it: {type(error).__name__}: nobody there"


def test_a_users_mistake_is_raised_to_who_waits() -> None:
    with pytest.raises(UserError, match="no such experiment"):
        BackgroundTracker("mine", fails_with(UserError("no such experiment")), patience_in_s=60)
