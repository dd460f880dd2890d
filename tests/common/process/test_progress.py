"""Progress without a terminal: one line at the start, and later ones no more often than every ten seconds."""

import logging
from types import SimpleNamespace

import pytest

from common.process import progress
from common.process.progress import Progress


@pytest.mark.parametrize(("every", "expected"), [(0.0, ["25% of 4,000", "100% of 4,000"]), (3600.0, [])])
def test_the_share_of_the_rows_and_their_rate_are_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, every: float, expected: list[str]
) -> None:
    monkeypatch.setattr(progress, "_LOG_EVERY_S", every)
    seconds = iter([0.0, 100.0, 400.0])
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    with caplog.at_level(logging.INFO), Progress("splitting", 4_000) as shown:
        shown.add(1_000)
        shown.add(3_000)
    first, *lines = (record.getMessage() for record in caplog.records)
    assert first == "splitting 4,000 rows"
    assert [line.split(" rows, ")[0] for line in lines] == [f"splitting: {share}" for share in expected]
    shown_left = ["10 rows/s, 0:05:00 left", "10 rows/s, 0:00:00 left"]
    assert [line.split(" rows, ")[1] for line in lines] == shown_left[: len(expected)]


def test_rows_can_have_another_name(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), Progress("answering", 3, "queries"):
        pass
    assert [record.getMessage() for record in caplog.records] == ["answering 3 queries"]


def test_a_part_without_rows_says_nothing_about_the_time_left(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(progress, "_LOG_EVERY_S", 0.0)
    with caplog.at_level(logging.INFO), Progress("reading", 3) as shown:
        shown.add(0)
    assert [record.getMessage() for record in caplog.records] == ["reading 3 rows"]
