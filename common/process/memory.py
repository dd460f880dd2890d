"""Determines how much memory this process may still use, so that programs refuse work that does not fit.

The kernel kills a process that exceeds the limit of its container, without a message.
"""

import contextlib
import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from common.errors import UserError
from common.process.environment import local_world_size_from_env

_ADDRESS_SPACE = "the address space of this process (ulimit -v)"

# A small run was measured to abort in native code with 1.5 GB of address space, and to train with 1.7 GB.
_ADDRESS_SPACE_OF_TORCH = 3 * 2**29

# What torch, the operating system, torch again, C++, Python's threads and the loader of libraries say.
_SIGNS = (
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "bad_alloc",
    "can't start new thread",
    "failed to map segment",
)

_UNITS = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (1, "B"))


class FreeMemory(NamedTuple):
    """Memory that a process may still use.

    Attributes:
      num_bytes: bytes that each process may allocate, >= 0.
      reason: the limit that applies, as a clause for messages.
    """

    num_bytes: int
    reason: str


def memory_shortage(needed: int, processes: int | None = None) -> str | None:
    """Return a clause for a message if memory does not suffice, such as "needs 2.0 GiB, but ...", otherwise None.

    Args:
      needed: bytes that each process is going to allocate.
      processes: number of processes on this machine that do so; None for all that torchrun started.

    Raises:
      UserError: LOCAL_WORLD_SIZE is not a number.
    """
    processes = local_world_size_from_env() if processes is None else processes
    free = free_memory(processes)
    if needed <= free.num_bytes:
        return None
    each = f" in each of the {processes} processes on this machine" if processes > 1 else ""
    return f"needs {format_bytes(needed)}{each}, but {free.reason}"


def check_address_space() -> None:
    """Raise UserError if `ulimit -v` leaves too little address space for torch, which then fails in many ways."""
    for name, limit, used in _own_limits(Path("/")):
        if name == _ADDRESS_SPACE and limit - used < _ADDRESS_SPACE_OF_TORCH:
            raise UserError(
                f"{name} is limited to {format_bytes(limit)}, but loading torch and training take at least "
                f"{format_bytes(_ADDRESS_SPACE_OF_TORCH)}. Raise the limit"
            )


def allocation_failure(error: BaseException) -> BaseException | None:
    """Return the exception among `error` and its causes that says that memory ran out, or None if none does."""
    cause: BaseException | None = error
    while cause is not None:
        text = str(cause).lower()
        if isinstance(cause, MemoryError) or any(sign in text for sign in _SIGNS):
            return cause
        cause = cause.__cause__ or cause.__context__
    return None


def free_memory(processes: int = 1, root: Path = Path("/")) -> FreeMemory:
    """Return the memory that each of `processes` processes on this machine may still allocate.

    This is the minimum over the machine, the control group of this process and all groups above it, whose memory the
    processes share, and the limits of this process (ulimit -v and -d). What is in use already is subtracted, except
    for caches of files, which the kernel gives up if needed.

    Args:
      processes: number of processes that share the machine and the container.
      root: directory that holds `proc` and `sys`.
    """
    limits = [
        *((_available(limit, used) // processes, "this container", limit, used) for limit, used in _cgroups(root)),
        *((_available(limit, used), name, limit, used) for name, limit, used in _own_limits(root)),
    ]
    total, used = _machine(root)
    limits.append((_available(total, used) // processes, "this machine", total, used))
    num_bytes, name, limit, used = min(limits)
    return FreeMemory(
        num_bytes, f"{name} has {format_bytes(limit)}, of which {format_bytes(min(used, limit))} are in use"
    )


def format_bytes(count: float) -> str:
    """Return a number of bytes in the largest unit of which there is at least one, such as 1.5 GiB."""
    unit, name = next((unit, name) for unit, name in _UNITS if count >= unit or unit == 1)
    return f"{count:,.0f} {name}" if unit == 1 else f"{count / unit:,.1f} {name}"


def _available(limit: int, used: int) -> int:
    return max(0, limit - used)


def _machine(root: Path) -> tuple[int, int]:
    """Return the physical memory of the machine and how much of it is in use."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    kib = _fields(root / "proc/meminfo").get("MemAvailable:")
    return total, 0 if kib is None else _available(total, 1024 * kib)


def _own_limits(root: Path) -> Iterator[tuple[str, int, int]]:
    """Yield the limits on the memory of this process: name, limit and use, in bytes."""
    page = os.sysconf("SC_PAGE_SIZE")
    sizes: list[int] = []
    with contextlib.suppress(OSError, ValueError):  # not Linux
        sizes = [page * int(text) for text in (root / "proc/self/statm").read_text().split()]
    limits = [
        (_ADDRESS_SPACE, resource.RLIMIT_AS, 0),
        ("the data of this process (ulimit -d)", resource.RLIMIT_DATA, 5),
    ]
    for name, number, position in limits:
        limit, _ = resource.getrlimit(number)
        if limit != resource.RLIM_INFINITY:
            yield name, limit, sizes[position] if position < len(sizes) else 0


def _cgroups(root: Path) -> Iterator[tuple[int, int]]:
    """Yield limit and use, in bytes, of this process's control group and of all groups above it."""
    try:
        memberships = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return
    for membership in memberships:
        _, controllers, group = membership.split(":", 2)
        if controllers == "":  # cgroup v2
            top, names, prefix = root / "sys/fs/cgroup", ("memory.max", "memory.current"), ""
        elif "memory" in controllers.split(","):  # cgroup v1
            top, names = root / "sys/fs/cgroup/memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
            prefix = "total_"  # of the group and the groups below it, like the usage
        else:
            continue
        # Without a cgroup namespace, a container reads its path on the host, but finds its own group at `top`.
        parts = [part for part in group.split("/") if part not in ("", "..")]
        for depth in range(len(parts) + 1):
            folder = top.joinpath(*parts[:depth])
            limit = used = 0
            with contextlib.suppress(OSError, ValueError):  # no such file, or "max": no limit
                limit = int((folder / names[0]).read_text())
            if limit:
                with contextlib.suppress(OSError, ValueError):
                    used = int((folder / names[1]).read_text())
                statistics = _fields(folder / "memory.stat")
                cached = sum(statistics.get(f"{prefix}{kind}_file", 0) for kind in ("active", "inactive"))
                yield limit, max(0, used - cached)


def _fields(path: Path) -> dict[str, int]:
    """Return the numbers of a file of lines with a name and a number; empty if there is no such file."""
    fields = {}
    with contextlib.suppress(OSError):
        for line in path.read_text().splitlines():
            name, *values = line.split()
            if values and values[0].isdecimal():
                fields[name] = int(values[0])
    return fields
