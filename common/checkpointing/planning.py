"""Prepares this process for torch.distributed.checkpoint, which plans who writes and reads what."""

import contextlib
import gc
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def planning() -> Iterator[None]:
    """Pause garbage collection, and silence torch's warning about a process group that is missing on purpose.

    The many small objects of a plan would trigger full collections, each of which stops training for 0.2 s.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
            yield
    finally:
        if was_enabled:
            gc.enable()
