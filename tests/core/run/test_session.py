"""Sessions in a world of one. tests/distributed/ covers lost ranks, and a save_dir that several ranks share."""

import dataclasses
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch.distributed as dist

from common.errors import LostRankError, UserError
from common.tracking.measurement import Measurement, Tracker
from common.tracking.trackers import Trackers
from core.config.training import RuntimeConfig
from core.run.directory import RunDirectory
from core.run.session import Session
from tests.support.toy import ALONE, MemoryTracker

MEASUREMENT = Measurement(3, "train", None, {"loss": 0.5}, {})


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    return RunDirectory(str(tmp_path / "run"))


@pytest.fixture
def session(directory: RunDirectory) -> Session:
    return Session(RuntimeConfig(), ALONE, directory)


def is_locked(directory: RunDirectory) -> bool:
    other = RunDirectory(str(directory.path))
    try:
        return other.lock() is None
    finally:
        other.release()


class ClosingTracker(MemoryTracker):
    """Runs an action when it finishes."""

    def __init__(self, on_finish: Callable[[], None]) -> None:
        super().__init__()
        self._on_finish = on_finish

    def finish(self) -> None:
        super().finish()
        self._on_finish()


def open_trackers(session: Session, additional: Mapping[str, Callable[[], Tracker]]) -> Trackers:
    """Open only `additional` trackers, and return their container."""
    trackers = Trackers()
    session.open_trackers(lambda: trackers, additional)
    return trackers


def run_until(session: Session, directory: RunDirectory, error: BaseException | None, events: list[str]) -> None:
    """Open everything that a session closes, and record the order in which it does."""

    def note(event: str) -> None:
        events.append(f"{event}, {'locked' if is_locked(directory) else 'unlocked'}")

    with session:
        session.at_end(lambda: note("registered first"))
        session.lock_save_dir()
        session.at_end(lambda: note("registered after the lock"))
        open_trackers(session, {"memory": lambda: ClosingTracker(lambda: note("tracker finished"))})
        session.at_end(lambda: note("registered last"))
        assert is_locked(directory)
        if error is not None:
            raise error


CLOSING_ORDER = [
    "registered last, locked",
    "tracker finished, locked",
    "registered after the lock, locked",
    "registered first, unlocked",
]


def test_a_session_closes_in_reverse_order(session: Session, directory: RunDirectory) -> None:
    events: list[str] = []
    run_until(session, directory, None, events)
    assert events == CLOSING_ORDER


@pytest.mark.parametrize("error", [UserError("bad data"), RuntimeError("a bug"), SystemExit(3)])
def test_an_error_closes_everything_and_is_raised_unchanged(
    session: Session, directory: RunDirectory, error: BaseException
) -> None:
    events: list[str] = []
    with pytest.raises(type(error)) as raised:
        run_until(session, directory, error, events)
    assert raised.value is error
    assert events == CLOSING_ORDER


def test_what_closes_sees_the_error(session: Session) -> None:
    """Trackers use it to mark a run as failed."""
    seen: list[BaseException | None] = []
    error = UserError("bad data")

    def fail() -> None:
        with session:
            session.at_end(lambda: seen.append(sys.exception()))
            raise error

    with pytest.raises(UserError):
        fail()
    assert seen == [error]


def test_an_error_while_closing_does_not_keep_the_lock(session: Session, directory: RunDirectory) -> None:
    tracker = MemoryTracker()

    def fail() -> None:
        raise RuntimeError("cannot close")

    def use() -> None:
        with session:
            session.lock_save_dir()
            open_trackers(session, {"memory": lambda: tracker})
            session.at_end(fail)

    with pytest.raises(RuntimeError, match="cannot close"):
        use()
    assert tracker.finished == 1
    assert not is_locked(directory)


def test_trackers_receive_measurements_until_the_end(session: Session) -> None:
    tracker = MemoryTracker()
    with session:
        session.trackers.log(MEASUREMENT)  # no tracker yet
        trackers = open_trackers(session, {"memory": lambda: tracker})
        assert session.trackers is trackers
        session.trackers.log(MEASUREMENT)
        assert tracker.finished == 0
    assert (tracker.measurements, tracker.finished) == ([MEASUREMENT], 1)


def test_a_user_error_of_a_tracker_finishes_those_that_were_opened(session: Session, directory: RunDirectory) -> None:
    good = MemoryTracker()

    def refuse() -> Tracker:
        raise UserError("no such project")

    def use() -> None:
        with session:
            session.lock_save_dir()
            open_trackers(session, {"good": lambda: good, "bad": refuse, "never": lambda: pytest.fail("opened")})

    with pytest.raises(UserError, match="no such project"):
        use()
    assert good.finished == 1
    assert not is_locked(directory)


def test_a_user_error_of_the_runs_own_trackers_is_raised(session: Session) -> None:
    def refuse() -> Trackers:
        raise UserError("metrics.jsonl is damaged")

    with pytest.raises(UserError, match="damaged"), session:
        session.open_trackers(refuse, {})


def test_a_locked_save_dir_is_refused_and_stays_locked(session: Session, directory: RunDirectory) -> None:
    other = RunDirectory(str(directory.path))
    other.claim()
    with pytest.raises(UserError, match=str(directory.path)), session:
        session.lock_save_dir()
    assert is_locked(directory)
    other.check_held()


def test_a_save_dir_that_ranks_do_not_share_is_refused_and_unlocked(
    session: Session, directory: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def refuse(holder: str) -> None:
        seen.append(holder)
        raise UserError("rank 1 does not see it")

    monkeypatch.setattr(directory, "check_shared", refuse)
    with pytest.raises(UserError, match="rank 1 does not see it"), session:
        session.lock_save_dir()
    (claim,) = seen
    assert claim.startswith(f"{directory.holder}, ")
    assert not is_locked(directory)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_signal_is_a_request_until_the_session_ends(session: Session, number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with session:
        assert not session.is_stop_requested
        signal.raise_signal(number)
        assert session.is_stop_requested
        assert session.agree_on_stop_signal() == number
    assert signal.getsignal(number) == before


def test_a_session_that_is_not_entered_handles_no_signals(session: Session) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    assert not session.is_stop_requested
    Session(RuntimeConfig(), ALONE, RunDirectory("nowhere"))
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_lost_rank_is_reported_with_what_this_rank_was_doing(directory: RunDirectory) -> None:
    closed: list[str] = []
    session = Session(RuntimeConfig(), dataclasses.replace(ALONE, size=2), directory)

    def lose_a_rank() -> None:
        with session:
            session.at_end(lambda: closed.append("closed"))
            session.watchdog.beat("step", 7)
            raise dist.DistNetworkError("Connection reset by peer")

    with pytest.raises(LostRankError, match=r"step 7 for .*Connection reset"):
        lose_a_rank()
    assert closed == ["closed"]


def test_a_hang_is_reported_during_the_session_only(directory: RunDirectory) -> None:
    session = Session(RuntimeConfig(hang_dump_after_in_s=60.0), ALONE, directory)
    with session:
        assert session.watchdog._thread.is_alive()
    assert not session.watchdog._thread.is_alive()
