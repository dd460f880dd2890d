"""Counts consecutive steps whose update was skipped, without waiting for the device.

step.py skips updates, and divergence.py ends a run that has skipped too many.
"""

import collections

import torch

# Number of steps whose outcomes leave the device in one copy.
_STEPS_PER_COPY = 16


class SkippedStepCounter:
    """Counts skipped updates in a row exactly: immediately on a CPU, and on CUDA once the device has computed them.

    Outcomes are the same on all ranks, but ranks may learn them at different times.
    """

    def __init__(self, device: torch.device, limit: int, step: int, in_a_row: int = 0) -> None:
        """Initialize.

        Args:
          device: device of the outcomes.
          limit: maximum allowed number of consecutive skipped updates (>= 0).
          step: step after which the count begins.
          in_a_row: number of consecutive skipped updates up to `step`.
        """
        self._reads_at_once = device.type == "cpu"
        self.limit = limit
        self._step = step
        self._in_a_row = in_a_row
        self._pending: list[torch.Tensor] = []
        self._copies: collections.deque[tuple[torch.Tensor, torch.cuda.Event]] = collections.deque()
        self._found: range | None = None
        self.too_many: range | None = None
        """The first consecutive skipped steps that exceed the limit; None until all ranks know of them."""

    def add(self, skipped: torch.Tensor) -> None:
        """Count the next step: 1.0 if its update was skipped, else 0.0, as a scalar on the device."""
        if self._reads_at_once:
            self._count(skipped.item())
            self.too_many = self._found
            return
        self._pending.append(skipped)
        if len(self._pending) == _STEPS_PER_COPY:
            outcomes = torch.empty(_STEPS_PER_COPY, dtype=skipped.dtype, pin_memory=True)
            outcomes.copy_(torch.stack(self._pending), non_blocking=True)
            self._pending.clear()
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record()
            self._copies.append((outcomes, copied))

    def poll(self) -> bool:
        """Return whether this rank knows of too many skipped updates. Does not wait for the device."""
        while self._copies and self._copies[0][1].query():  # type: ignore[no-untyped-call]
            self._count(*self._copies.popleft()[0].tolist())
        return self._found is not None

    def settle(self) -> int:
        """Wait for the device, count everything, and return the number of consecutive skipped updates up to now.

        All ranks call this at the same step, so that they have the same count afterwards.
        """
        while self._copies:
            outcomes, copied = self._copies.popleft()
            copied.synchronize()
            self._count(*outcomes.tolist())
        if self._pending:
            self._count(*torch.stack(self._pending).tolist())
            self._pending.clear()
        self.too_many = self._found
        return self._in_a_row

    def _count(self, *outcomes: float) -> None:
        for skipped in outcomes:
            self._step += 1
            self._in_a_row = self._in_a_row + 1 if skipped else 0
            if self._in_a_row > self.limit and self._found is None:
                self._found = range(self._step - self._in_a_row + 1, self._step + 1)
