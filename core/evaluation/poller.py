"""Waits for a condition that the caller checks once a second."""

import logging
import time

logger = logging.getLogger(__name__)

_POLL_IN_S = 1.0
# Seconds after which a wait is logged again. Each further log line comes after twice the time waited so far.
_FIRST_REMINDER_IN_S = 60.0


class Poller:
    """A single wait, which begins when the object is created."""

    def __init__(self, timeout_in_s: float) -> None:
        self._timeout_in_s = timeout_in_s
        self._began = time.monotonic()
        self._next_reminder_in_s = 0.0

    @property
    def is_over(self) -> bool:
        """True once the timeout has passed."""
        return time.monotonic() - self._began >= self._timeout_in_s

    def sleep(self, awaited: str) -> None:
        """Sleep until the next check, at most until the timeout. Log what is awaited, at increasing intervals."""
        waited = time.monotonic() - self._began
        if waited >= self._next_reminder_in_s:
            logger.info("waiting for %s: %.0f of at most %g s", awaited, waited, self._timeout_in_s)
            self._next_reminder_in_s = max(_FIRST_REMINDER_IN_S, 2 * waited)
        time.sleep(max(0.0, min(_POLL_IN_S, self._timeout_in_s - waited)))
