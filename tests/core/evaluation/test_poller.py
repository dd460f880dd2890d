import logging
import time

import pytest

from core.evaluation.poller import Poller


def test_a_wait_is_told_once_and_then_ever_more_rarely(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """On a clock that sleeping alone moves."""
    caplog.set_level(logging.INFO)
    now = 1000.0

    def sleep(seconds: float) -> None:
        nonlocal now
        assert 0 < seconds <= 1
        now += seconds

    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(time, "sleep", sleep)
    wait = Poller(599.5)
    while not wait.is_over:
        wait.sleep("the post")
    assert now == 1599.5
    assert caplog.messages == [f"waiting for the post: {at} of at most 599.5 s" for at in (0, 60, 120, 240, 480)]
