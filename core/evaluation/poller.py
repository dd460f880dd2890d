"""A wait for something that is looked for now and then."""

import logging
import time

logger = logging.getLogger(__name__)

_POLL_IN_S = 1.0
# After which a wait is told again; each next time after twice as long.
_PATIENCE_IN_S = 60.0


class Poller:
    """One wait, which begins when it is made."""

    def __init__(self, timeout_in_s: float) -> None:
        self._timeout_in_s = timeout_in_s
        self._began = time.monotonic()
        self._told_next = 0.0

    @property
    def is_over(self) -> bool:
        return time.monotonic() - self._began >= self._timeout_in_s

    def sleep(self, awaited: str) -> None:
        """Sleeps until the next look, at most until the wait is over; says now and then what is awaited."""
        waited = time.monotonic() - self._began
        if waited >= self._told_next:
            logger.info("waiting for %s: %.0f of at most %g s", awaited, waited, self._timeout_in_s)
            self._told_next = max(_PATIENCE_IN_S, 2 * waited)
        time.sleep(max(0.0, min(_POLL_IN_S, self._timeout_in_s - waited)))
