"""Determines how much memory this process may use."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


def memory_limit_in_bytes(root: Path = Path("/")) -> int:
    """Return the physical memory of the machine, or the container's memory limit if that is lower.

    The limit belongs to the container or machine as a whole: all processes in it share it.

    Args:
      root: directory that holds `proc` and `sys`.
    """
    physical_memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([physical_memory, *_cgroup_limits(root)])


def _cgroup_limits(root: Path) -> Iterator[int]:
    """Yield the memory limits, in bytes, of this process's control group and of all groups above it."""
    try:
        memberships = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return
    for membership in memberships:
        _, controllers, group = membership.split(":", 2)
        if controllers == "":  # cgroup v2
            top, file_name = root / "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):  # cgroup v1
            top, file_name = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        # Without a cgroup namespace, a container reads its path on the host, but finds its own group at `top`.
        parts = [part for part in group.split("/") if part not in ("", "..")]
        for depth in range(len(parts) + 1):
            with contextlib.suppress(OSError, ValueError):  # no such file, or "max": no limit
                yield int(top.joinpath(*parts[:depth], file_name).read_text())
