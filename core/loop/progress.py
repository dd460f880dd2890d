"""Shows the progress of training on rank 0: a progress bar on a terminal, plain log lines elsewhere."""

import logging
import os
import sys
from typing import Never

import tqdm

from common.distributed.world import World
from common.tracking.measurement import Measurement

logger = logging.getLogger(__name__)


class ProgressReport:
    """Shows the steps done and, at each train log, the loss, the speed and the share of time waiting for data."""

    def __init__(self, world: World, first_step: int, last_step: int) -> None:
        self._is_silent = not world.is_rank_zero
        self._last_step = last_step
        self._bar: tqdm.tqdm[Never] | None = None
        if world.is_rank_zero and sys.stderr.isatty():
            # Some terminals (docker, script) report a width of 0, which would hide the bar.
            width = {"dynamic_ncols": True} if os.get_terminal_size(sys.stderr.fileno()).columns else {"ncols": 100}
            self._bar = tqdm.tqdm(initial=first_step, total=last_step, unit="step", **width)

    def step(self) -> None:
        """Count a step."""
        if self._bar is not None:
            self._bar.update()

    def logged(self, measurement: Measurement) -> None:
        """Show a train measurement."""
        if self._is_silent:
            return
        loss, timing = measurement.metrics["loss"], measurement.timing
        shown = {
            "loss": "non-finite" if loss is None else f"{loss:.5f}",
            "examples/s": f"{timing['examples_per_second']:,.0f}",
            "waiting for data": f"{timing['data_wait_share']:.0%}",
        }
        if self._bar is not None:
            self._bar.set_postfix(shown)
        else:
            figures = ", ".join(f"{name} {value}" for name, value in shown.items())
            logger.info("step %d of %d: %s", measurement.step, self._last_step, figures)
        if skipped := measurement.metrics["skipped_updates"]:
            logger.warning(
                "skipped %d update(s) up to step %d: non-finite losses or gradients", skipped, measurement.step
            )

    def close(self) -> None:
        """Close the bar, and leave it on the screen."""
        if self._bar is not None:
            self._bar.close()
