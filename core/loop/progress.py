"""How a person sees training go on: a progress bar on a terminal, plain lines elsewhere, on rank 0 alone."""

import logging
import os
import sys
from typing import Never

import tqdm

from common.distributed.world import World
from common.tracking.measurement import Measurement

logger = logging.getLogger(__name__)


class ProgressReport:
    """Shows the steps done, and at each train log the loss, the speed and the share of time spent waiting for data."""

    def __init__(self, world: World, first_step: int, last_step: int) -> None:
        self._last_step = last_step
        self._bar: tqdm.tqdm[Never] | None = None
        if world.is_rank_zero and sys.stderr.isatty():
            # Some terminals (docker, script) don't tell their width; a bar as wide as that would be none.
            width = {"dynamic_ncols": True} if os.get_terminal_size(sys.stderr.fileno()).columns else {"ncols": 100}
            self._bar = tqdm.tqdm(initial=first_step, total=last_step, unit="step", **width)

    def step(self) -> None:
        """A step was made."""
        if self._bar is not None:
            self._bar.update()

    def logged(self, measurement: Measurement) -> None:
        """Shows a train measurement."""
        loss, timing = measurement.metrics["loss"], measurement.timing
        shown = {
            "loss": "not finite" if loss is None else f"{loss:.5f}",
            "examples/s": f"{timing['examples_per_second']:,.0f}",
            "waiting for data": f"{timing['data_wait_share']:.0%}",
        }
        if self._bar is not None:
            self._bar.set_postfix(shown)
        else:
            figures = ", ".join(f"{name} {value}" for name, value in shown.items())
            logger.info("step %d of %d: %s", measurement.step, self._last_step, figures)
        if skipped := measurement.metrics["skipped_updates"]:
            logger.warning("%d update(s) left out before step %d: gradients not finite", skipped, measurement.step)

    def close(self) -> None:
        """Leaves the bar as it stands."""
        if self._bar is not None:
            self._bar.close()
