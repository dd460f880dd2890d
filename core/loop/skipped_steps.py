"""Counts training steps in a row whose update was left out, without waiting for the device.

How an update is left out is in train_step.py, what is told of too many of them in nonfinite.py.
"""

import collections

import torch

# Steps whose outcomes leave the device in one copy.
_STEPS_PER_COPY = 16


class SkippedStepCounter:
    """Steps in a row whose numbers were not finite, counted exactly: on the CPU at once, on CUDA as the device gets
    there.

    Outcomes are the same on all ranks; when a rank learns them is its own matter.
    """

    def __init__(self, device: torch.device, most: int, step: int, in_a_row: int = 0) -> None:
        """Args:
        device: of the outcomes.
        most: steps in a row that are not too many, >= 0.
        step: that the count begins after.
        in_a_row: up to then.
        """
        self._reads_at_once = device.type == "cpu"
        self.most = most
        self._step = step
        self._in_a_row = in_a_row
        self._pending: list[torch.Tensor] = []
        self._copies: collections.deque[tuple[torch.Tensor, torch.cuda.Event]] = collections.deque()
        self._found: range | None = None
        self.too_many: range | None = None
        """The first steps in a row that were more than `most`; None: there were none, as far as all ranks know."""

    def add(self, skipped: torch.Tensor) -> None:
        """Counts the next step. skipped: 1.0 where its update was left out, else 0.0; a scalar on the device."""
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
        """Whether there were too many, as far as this rank can tell without waiting."""
        while self._copies and self._copies[0][1].query():  # type: ignore[no-untyped-call]
            self._count(*self._copies.popleft()[0].tolist())
        return self._found is not None

    def settle(self) -> int:
        """Waits for the device and counts all that was added; the steps in a row up to now.

        All ranks call it at the same step, so that they know the same then.
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
            if self._in_a_row > self.most and self._found is None:
                self._found = range(self._step - self._in_a_row + 1, self._step + 1)
