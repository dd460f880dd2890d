"""Identifies processes beyond their ids, which the operating system reuses.

Without /proc, as on macOS, an identity is only the host and the process id, and no other process counts as running.
"""

import os
import socket
from pathlib import Path

_RUN_ID = "TORCHELASTIC_RUN_ID"


def process_identity(pid: int) -> str:
    """Return a word that no other process has, on this or another machine, now or later."""
    parts = [socket.gethostname(), str(pid)]
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = Path("/proc/self/ns/pid").stat().st_ino  # a container has process ids of its own
        parts += [_stat(pid)[19], str(namespace), boot]
    except (OSError, IndexError):
        pass
    return ":".join(parts)


def is_running(identity: str) -> bool:
    """Return whether a process runs on this machine, in this container. False if it may run elsewhere."""
    _, _, rest = identity.partition(":")
    pid = rest.partition(":")[0]
    try:
        return pid.isdecimal() and _stat(int(pid))[0] not in "ZX" and process_identity(int(pid)) == identity
    except (OSError, IndexError):
        return False


def torchrun_identity() -> str | None:
    """Return the identity of the torchrun process that started this one, or None without torchrun.

    A program between the two, such as a shell script, does not count: torchrun starts it again with each restart.
    """
    if _RUN_ID not in os.environ:
        return None
    marker = f"{_RUN_ID}={os.environ[_RUN_ID]}".encode()
    pid = os.getppid()
    try:
        while marker in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            pid = int(_stat(pid)[1])
    except (OSError, IndexError):
        pass
    return process_identity(pid)


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/<pid>/stat after the name of the program: state, parent, ..., start time (19)."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
