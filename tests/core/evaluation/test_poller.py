import logging
import time

import pytest

from core.evaluation.poller import Poller


def test_a_wait_is_logged_at_increasing_intervals(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Only sleeping advances the clock of this test."""
    caplog.set_level(logging.INFO)
    now = 1000.0

    def sleep(seconds: float) -> None:
        nonlocal now
        assert 0 < seconds <= 1
        now += seconds

    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(time, "sleep", sleep)
    poller = Poller(599.5)
    while not poller.is_over:
        poller.sleep("the mail")
    assert now == 1599.5
    assert len(caplog.messages) == 5
    for message, seconds in zip(caplog.messages, (0, 60, 120, 240, 480), strict=True):
        assert f"the mail: {seconds} of at most 599.5 s" in message
