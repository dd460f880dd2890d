"""Sets up logging by rank: rank 0 logs to standard error, and the other ranks are silent."""

import logging
import sys
import warnings

import tqdm


class _ProgressBarSafeHandler(logging.Handler):
    """Writes records to standard error without breaking a progress bar that is displayed there."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            tqdm.tqdm.write(self.format(record), file=sys.stderr)
        except Exception:
            self.handleError(record)


def setup_logging(rank: int) -> None:
    """Send the log of rank 0 to standard error, one timestamped line per record, and silence the other ranks.

    A traceback that ends a process is still printed on every rank.
    """
    root = logging.getLogger()
    if rank > 0:
        root.addHandler(logging.NullHandler())  # without a handler, logging prints warnings on its own
        warnings.simplefilter("ignore")
        return
    if not any(isinstance(handler, _ProgressBarSafeHandler) for handler in root.handlers):
        handler = _ProgressBarSafeHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
        root.addHandler(handler)
    root.setLevel(logging.INFO)
    logging.captureWarnings(True)
