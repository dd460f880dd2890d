"""Rank-aware logging: rank 0 speaks, the others are silent."""

import logging
import sys
import warnings

import tqdm


class _BesideProgressBar(logging.Handler):
    """Writes to standard error without tearing a progress bar that stands there."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            tqdm.tqdm.write(self.format(record), file=sys.stderr)
        except Exception:
            self.handleError(record)


def setup_logging(rank: int) -> None:
    """Sends the log of rank 0 to standard error, a line a record with its time, and silences the other ranks.

    What ends a process unexpectedly (a traceback) is printed on every rank all the same.
    """
    root = logging.getLogger()
    if rank > 0:
        root.addHandler(logging.NullHandler())  # without any handler, logging prints warnings itself
        warnings.simplefilter("ignore")
        return
    if not any(isinstance(handler, _BesideProgressBar) for handler in root.handlers):
        handler = _BesideProgressBar()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
        root.addHandler(handler)
    root.setLevel(logging.INFO)
    logging.captureWarnings(True)
