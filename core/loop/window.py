"""Measures training between two logs: running sums that stay on the device, and the clock."""

import contextlib
import math
import time
from collections.abc import Iterator, Mapping

import torch
import torch.distributed as dist

from common.distributed.world import World

# Maximum number of steps whose scalars stay separate on the device.
_MOST_PENDING = 1024


class TrainWindow:
    """Sums over the steps since the last train log."""

    def __init__(self, world: World, saved: Mapping[str, float | None]) -> None:
        """Initialize.

        Args:
          world: rank of this process, world size and device.
          saved: the snapshot() in a checkpoint; empty for a fresh run.
        """
        self._world = world
        self._steps = int(saved.get("steps") or 0)
        loss_sum = saved.get("loss_sum", 0.0)
        # Rescale sums over a different number of ranks as if these ranks had computed them.
        scale = world.size / (saved.get("ranks") or world.size)
        # None means that a loss was non-finite, because JSON has no NaN.
        self._reduced = [math.nan if loss_sum is None else loss_sum * scale, (saved.get("skipped") or 0.0) * scale]
        self._own = torch.zeros(2, dtype=torch.float64, device=world.device)
        # Many are summed at a time, because one operation per step would take longer than the rest of the window.
        self._losses: list[torch.Tensor] = []
        self._skips: list[torch.Tensor] = []

    def add(self, loss: torch.Tensor, skipped: torch.Tensor) -> None:
        """Add a step: this rank's loss, and 1.0 if its update was skipped, else 0.0. Scalars on the device."""
        self._losses.append(loss)
        self._skips.append(skipped)
        self._steps += 1
        if len(self._losses) == _MOST_PENDING:
            self._add_pending()

    def snapshot(self) -> dict[str, float | None]:
        """Return the sums over all ranks, for a checkpoint. Collective.

        This window continues from the same reduced sums, so that it and a resumed run add the same numbers in the same
        order.
        """
        if self._losses:
            self._add_pending()
        if self._world.size > 1:
            dist.all_reduce(self._own)
        self._reduced = [r + own for r, own in zip(self._reduced, self._own.tolist(), strict=True)]
        self._own.zero_()
        loss_sum, skipped = self._reduced
        return {
            "loss_sum": loss_sum if math.isfinite(loss_sum) else None,
            "skipped": skipped,
            "steps": float(self._steps),
            "ranks": float(self._world.size),
        }

    def compute_and_reset(self) -> dict[str, float | int | None]:
        """Return the train metrics of the window, and start a new window. Collective.

        Returns:
          "loss", the mean over steps and ranks, or None if a loss was non-finite; and "skipped_updates", their number.
        """
        sums = self.snapshot()
        loss_sum, skipped = sums["loss_sum"], sums["skipped"] or 0.0
        terms = self._steps * self._world.size
        self._steps = 0
        self._reduced = [0.0, 0.0]
        return {
            "loss": loss_sum / terms if loss_sum is not None and terms else None,
            "skipped_updates": round(skipped / self._world.size),
        }

    def _add_pending(self) -> None:
        sums = [torch.stack(scalars).sum(dtype=torch.float64) for scalars in (self._losses, self._skips)]
        self._own += torch.stack(sums)
        self._losses.clear()
        self._skips.clear()


class Stopwatch:
    """Times training, excluding evaluations and saves. Counts the time spent waiting for data separately."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Start a window."""
        self._started = time.perf_counter()
        self._steps = 0
        self._waited = 0.0
        self._paused = 0.0

    def stepped(self) -> None:
        """Count a step."""
        self._steps += 1

    def waited(self, seconds: float) -> None:
        """Add time spent waiting for a batch."""
        self._waited += seconds

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Exclude the time inside the context."""
        started = time.perf_counter()
        yield
        self._paused += time.perf_counter() - started

    def timing(self, examples_per_step: int) -> dict[str, float]:
        """Return the window's seconds, its examples per second over all ranks, and the share of time spent waiting."""
        seconds = max(time.perf_counter() - self._started - self._paused, 1e-9)
        return {
            "seconds": seconds,
            "examples_per_second": self._steps * examples_per_step / seconds,
            "data_wait_share": min(1.0, self._waited / seconds),
        }
