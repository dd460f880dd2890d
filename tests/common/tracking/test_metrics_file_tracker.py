"""Tests what is logged when lines cannot be written, and what the file contains afterwards."""

import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest

import common.tracking.metrics_file_tracker
from common.tracking.measurement import Measurement
from common.tracking.metrics_file import read_metrics
from common.tracking.metrics_file_tracker import MetricsFileTracker
from tests.support.faults import full_disk


def train(step: int) -> Measurement:
    return Measurement(step, "train", None, {"loss": step / 7}, {})


def steps(path: Path) -> list[int]:
    return [measurement.step for measurement in read_metrics(path)]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def test_an_outage_is_one_warning_and_its_measurements_are_written_later(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    tracker = MetricsFileTracker(path, 0)
    tracker.log(train(1))
    for first in (2, 5):
        whole = path.read_bytes()
        with full_disk(len(whole) + 20):  # room for a part of a line
            tracker.log(train(first))
            assert path.read_bytes() == whole
            tracker.log(train(first + 1))
        tracker.log(train(first + 2))
    tracker.finish()
    assert steps(path) == [1, 2, 3, 4, 5, 6, 7]
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"] * 2
    for outage in caplog.messages[::2]:
        assert outage.startswith(f"cannot write {path}: File too large. ")
        assert "10,000 measurements" in outage
    assert caplog.messages[1::2] == [f"writing {path} again; no measurement is missing"] * 2


def test_the_number_of_missing_measurements_is_logged(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(common.tracking.metrics_file_tracker, "_MAX_PENDING", 2)
    tracker = MetricsFileTracker(path, 0)
    with full_disk(20):
        for step in range(1, 6):
            tracker.log(train(step))
    tracker.log(train(6))
    with full_disk(20):
        tracker.log(train(7))
        tracker.finish()
    assert steps(path) == [5, 6]
    assert warnings(caplog)[1] == f"writing {path} again; 4 measurement(s) are missing"
    assert warnings(caplog)[3] == f"{path}: 1 measurement(s) could not be written and are missing"
    assert len(warnings(caplog)) == 4


def test_sync_writes_the_pending_measurements(path: Path) -> None:
    tracker = MetricsFileTracker(path, 0)
    with full_disk(20):
        tracker.log(train(1))
    tracker.sync()
    assert steps(path) == [1]
    tracker.finish()


def test_a_file_that_cannot_be_synchronized_is_one_warning(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_: int) -> None:
        raise OSError(5, "Input/output error")

    tracker = MetricsFileTracker(path, 0)
    monkeypatch.setattr(os, "fsync", refuse)
    tracker.sync()
    tracker.sync()
    tracker.finish()
    assert warnings(caplog) == [f"cannot synchronize {path} to disk: Input/output error"]


def moved(path: Path) -> None:
    path.rename(path.with_suffix(".old"))


def replaced(path: Path) -> None:
    path.with_suffix(".new").write_bytes(path.read_bytes())
    path.with_suffix(".new").replace(path)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size * 3 // 4)  # in the middle of the second of two lines


@pytest.mark.parametrize(
    ("change", "left"), [(Path.unlink, []), (moved, []), (replaced, [1, 2]), (cut, [1]), (Path.touch, [1, 2])]
)
def test_writing_continues_in_a_file_that_was_changed_from_outside(
    path: Path, caplog: pytest.LogCaptureFixture, change: Callable[[Path], None], left: list[int]
) -> None:
    tracker = MetricsFileTracker(path, 0)
    tracker.log(train(1))
    tracker.log(train(2))
    change(path)
    tracker.log(train(3))
    tracker.log(train(4))
    tracker.finish()
    assert steps(path) == [*left, 3, 4]
    assert len(warnings(caplog)) == (0 if change is Path.touch else 1)
    assert all(warning.startswith(f"{path} was removed, replaced or truncated ") for warning in warnings(caplog))


def test_measurements_are_kept_while_the_directory_is_moved_away(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = path.parent / "run"
    tracker = MetricsFileTracker(run / "metrics.jsonl", 0)
    run.rename(path.parent / "away")
    tracker.log(train(1))
    tracker.log(train(2))
    (path.parent / "away").rename(run)
    tracker.log(train(3))
    tracker.finish()
    assert steps(run / "metrics.jsonl") == [1, 2, 3]
    assert len(warnings(caplog)) == 2


def test_nothing_is_written_to_a_file_that_belongs_to_another_process_by_now(path: Path) -> None:
    is_ours = True
    tracker = MetricsFileTracker(path, 0, lambda: is_ours)
    tracker.log(train(1))
    is_ours = False
    tracker.log(train(2))
    tracker.finish()
    assert steps(path) == [1]
