"""Runs a program that kills itself with SIGKILL at an exact moment.

    python -m tests.support.trap TRAPS MODULE ARGUMENTS...

TRAPS is a JSON list of Trap. The first one applies to the first launch under torchrun, the next one to its first
restart, and so on. Later restarts run without a trap. A trap matches lines that describe what the program does:
one before each file operation, from Python's audit events ("os.rename A B", "open A"), and one for each log record
("log MESSAGE").
"""

import dataclasses
import json
import logging
import os
import re
import runpy
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

TRAP = "tests.support.trap"
# Audit events of the file system. All others are ignored.
_EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree"}


@dataclasses.dataclass(frozen=True)
class Trap:
    """Kills the process of `rank` at the `count`-th line that matches `pattern`."""

    pattern: str
    count: int = 1
    rank: int = 0

    def arm(self) -> None:
        """Activate the trap if this process has its rank."""
        if int(os.environ.get("RANK", "0")) != self.rank:
            return
        pattern, remaining, busy = re.compile(self.pattern), self.count, threading.local()

        def see(line: str) -> None:
            nonlocal remaining
            if pattern.search(line):
                remaining -= 1
                if remaining == 0:
                    os.write(2, f"trap: {line}\n".encode())
                    os.kill(os.getpid(), signal.SIGKILL)

        def audit(event: str, arguments: tuple[Any, ...]) -> None:
            if event in _EVENTS and not getattr(busy, "now", False):
                busy.now = True  # ignore the file operations of this hook itself
                see(" ".join([event, *_paths(event, arguments)]))
                busy.now = False

        create_record = logging.getLogRecordFactory()

        def create_and_see(*args: Any, **kwargs: Any) -> logging.LogRecord:
            record = create_record(*args, **kwargs)
            see(f"log {record.getMessage()}")
            return record

        sys.addaudithook(audit)
        logging.setLogRecordFactory(create_and_see)


def trapped(traps: Sequence[Trap], module: str, arguments: Sequence[str]) -> list[str]:
    """Return the arguments with which this program runs `module`, with one of `traps` for each launch by torchrun."""
    return [json.dumps([dataclasses.asdict(trap) for trap in traps]), module, *arguments]


def _paths(event: str, arguments: tuple[Any, ...]) -> list[str]:
    names = [os.fsdecode(name) for name in arguments if isinstance(name, str | bytes)]
    if event == "open":
        return names[:1]  # the others are the mode and the flags
    directory = arguments[-1]
    if event in ("os.remove", "os.rmdir") and isinstance(directory, int) and directory >= 0:
        names[0] = f"{Path(f'/proc/self/fd/{directory}').readlink()}/{names[0]}"
    return names


def main() -> None:
    traps = [Trap(**trap) for trap in json.loads(sys.argv[1])]
    start = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    if start < len(traps):
        traps[start].arm()
    sys.argv = sys.argv[2:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
