"""Limits the memory of this process for a while, as `ulimit -v` does."""

import contextlib
import os
import resource
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def room_for(num_bytes: int) -> Iterator[None]:
    """Let the process allocate about `num_bytes` more of address space."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = os.sysconf("SC_PAGE_SIZE") * int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (used + num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
