"""Runs a program that kills itself, by SIGKILL, at an exact point of its work.

    python -m tests.support.trap TRAPS MODULE ARGUMENTS...

TRAPS is JSON, a list of Trap: the first for the first start under torchrun, the next for its first restart, and so on;
a start beyond them is undisturbed. What the program does is seen as lines: of files, from Python's audit events, before
they happen ("os.rename A B", "open A"), and of its log ("log MESSAGE").
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
# Of which only the file system's are looked at.
_EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree"}


@dataclasses.dataclass(frozen=True)
class Trap:
    """Kills `rank` at the `count`-th line that `pattern` is found in."""

    pattern: str
    count: int = 1
    rank: int = 0

    def arm(self) -> None:
        """From now on, in this process, if it is the rank's."""
        if int(os.environ.get("RANK", "0")) != self.rank:
            return
        pattern, left, busy = re.compile(self.pattern), self.count, threading.local()

        def see(line: str) -> None:
            nonlocal left
            if pattern.search(line):
                left -= 1
                if left == 0:
                    os.write(2, f"trap: {line}\n".encode())
                    os.kill(os.getpid(), signal.SIGKILL)

        def audit(event: str, arguments: tuple[Any, ...]) -> None:
            if event in _EVENTS and not getattr(busy, "now", False):
                busy.now = True  # what is done here is no work of the program
                see(" ".join([event, *_paths(event, arguments)]))
                busy.now = False

        make = logging.getLogRecordFactory()

        def record(*args: Any, **kwargs: Any) -> logging.LogRecord:
            made = make(*args, **kwargs)
            see(f"log {made.getMessage()}")
            return made

        sys.addaudithook(audit)
        logging.setLogRecordFactory(record)


def trapped(traps: Sequence[Trap], module: str, arguments: Sequence[str]) -> list[str]:
    """Arguments of this program: `module` with its arguments, killed by one of `traps` at each start under torchrun."""
    return [json.dumps([dataclasses.asdict(trap) for trap in traps]), module, *arguments]


def _paths(event: str, arguments: tuple[Any, ...]) -> list[str]:
    names = [os.fsdecode(name) for name in arguments if isinstance(name, str | bytes)]
    if event == "open":
        return names[:1]  # the mode is another
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
