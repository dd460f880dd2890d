"""Warns if torchrun would kill this process before its grace period ends, in the middle of the last save."""

import argparse
import logging
import os
from pathlib import Path

logger = logging.getLogger(__name__)

_DEFAULT_IN_S = 30.0


def warn_if_killed_early(grace_period_in_s: float) -> None:
    """Log a warning if torchrun kills its workers before a grace period ends. Without torchrun, do nothing."""
    timeout = _shutdown_timeout_in_s()
    if timeout is not None and grace_period_in_s >= timeout:
        logger.warning(
            "runtime.grace_period_in_s is %g, but torchrun kills its workers %g s after a signal: a longer last save "
            "would be lost. Start torchrun with a longer --shutdown-timeout, or lower the grace period",
            grace_period_in_s,
            timeout,
        )


def _shutdown_timeout_in_s() -> float | None:
    """Return the --shutdown-timeout of the torchrun that started this process, or None without torchrun.

    Workers inherit the environment variables that torchrun takes it from, but see the option only in torchrun's command
    line. Where that cannot be read, the default counts.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--shutdown-timeout", "--shutdown_timeout")
    try:
        command = Path(f"/proc/{os.getppid()}/cmdline").read_text(errors="replace").split("\0")
    except OSError:
        command = []
    option = parser.parse_known_args(command)[0].shutdown_timeout
    environment = (os.environ.get(name) for name in ("PET_SHUTDOWN_TIMEOUT", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"))
    try:
        return next(float(given) for given in (option, *environment) if given is not None)
    except (StopIteration, ValueError):
        return _DEFAULT_IN_S
