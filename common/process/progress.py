"""Shows on rank 0 how far a stage of the program is: a bar on a terminal, log lines otherwise."""

import datetime
import logging
import sys
import time
from types import TracebackType
from typing import Never, Self

import tqdm

from common.process.environment import rank_from_env

logger = logging.getLogger(__name__)

_LOG_EVERY_S = 10.0


class Progress:
    """Shows the rows, or other units, that a stage has processed."""

    def __init__(self, stage: str, num_rows: int, unit: str = "rows") -> None:
        """Declare the stage, such as "splitting", its number of rows, and what to call them."""
        self._stage = stage
        self._num_rows = num_rows
        self._unit = unit
        self._done = 0
        self._start = self._logged = time.monotonic()
        self._bar: tqdm.tqdm[Never] | None = None

    def __enter__(self) -> Self:
        logger.info("%s %s %s", self._stage, f"{self._num_rows:,}", self._unit)
        if sys.stderr.isatty() and rank_from_env() == 0:
            self._bar = tqdm.tqdm(
                total=self._num_rows, unit=f" {self._unit}", unit_scale=True, ncols=80, nrows=20, leave=False
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def add(self, rows: int) -> None:
        """Count rows as done."""
        self._done += rows
        if self._bar is not None:
            self._bar.update(rows)
        elif self._done > 0 and (now := time.monotonic()) - self._logged >= _LOG_EVERY_S:
            self._logged = now
            speed = self._done / (now - self._start)
            logger.info(
                "%s: %.0f%% of %s %s, %s %s/s, %s left",
                self._stage,
                100 * self._done / self._num_rows,
                f"{self._num_rows:,}",
                self._unit,
                f"{speed:,.0f}",
                self._unit,
                datetime.timedelta(seconds=round((self._num_rows - self._done) / speed)),
            )
