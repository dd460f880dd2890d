"""The disk refuses lines: what is told, and what is in the file afterwards."""

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
        with full_disk(len(whole) + 20):  # a part of a line fits
            tracker.log(train(first))
            assert path.read_bytes() == whole
            tracker.log(train(first + 1))
        tracker.log(train(first + 2))
    tracker.finish()
    assert steps(path) == [1, 2, 3, 4, 5, 6, 7]
    out = f"{path} can't be written: File too large; training goes on, up to 10,000 measurements wait until it can"
    assert caplog.messages == [out, f"{path} is written again, nothing is missing"] * 2


def test_what_is_missing_is_told(path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(common.tracking.metrics_file_tracker, "_MOST_WAITING", 2)
    tracker = MetricsFileTracker(path, 0)
    with full_disk(20):
        for step in range(1, 6):
            tracker.log(train(step))
    tracker.log(train(6))
    with full_disk(20):
        tracker.log(train(7))
        tracker.finish()
    assert steps(path) == [5, 6]
    assert warnings(caplog)[1] == f"{path} is written again; 4 measurement(s) are missing"
    assert warnings(caplog)[3] == f"{path}: 1 measurement(s) could not be written and are missing"
    assert len(warnings(caplog)) == 4


def test_what_waits_is_written_before_a_checkpoint(path: Path) -> None:
    tracker = MetricsFileTracker(path, 0)
    with full_disk(20):
        tracker.log(train(1))
    tracker.sync()
    assert steps(path) == [1]
    tracker.finish()


def test_a_file_that_cannot_be_synchronised_is_one_warning(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_: int) -> None:
        raise OSError(5, "Input/output error")

    tracker = MetricsFileTracker(path, 0)
    monkeypatch.setattr(os, "fsync", refuse)
    tracker.sync()
    tracker.sync()
    tracker.finish()
    assert warnings(caplog) == [f"{path} can't be synchronised to disk: Input/output error"]


def moved(path: Path) -> None:
    path.rename(path.with_suffix(".old"))


def replaced(path: Path) -> None:
    path.with_suffix(".new").write_bytes(path.read_bytes())
    path.with_suffix(".new").replace(path)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size * 3 // 4)  # amid the second of two lines


@pytest.mark.parametrize(
    ("happens", "left"), [(Path.unlink, []), (moved, []), (replaced, [1, 2]), (cut, [1]), (Path.touch, [1, 2])]
)
def test_a_file_that_others_change_is_gone_on_with(
    path: Path, caplog: pytest.LogCaptureFixture, happens: Callable[[Path], None], left: list[int]
) -> None:
    tracker = MetricsFileTracker(path, 0)
    tracker.log(train(1))
    tracker.log(train(2))
    happens(path)
    tracker.log(train(3))
    tracker.log(train(4))
    tracker.finish()
    assert steps(path) == [*left, 3, 4]
    told = [f"{path} was removed, replaced or cut while it was written; going on with what is there now, in which "]
    assert [warning.split("earlier")[0] for warning in warnings(caplog)] == ([] if happens is Path.touch else told)


def test_a_directory_that_vanishes_and_comes_back(path: Path, caplog: pytest.LogCaptureFixture) -> None:
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
