"""Keeps a program running when its standard output or standard error cannot be written.

The reason may be a closed pipe, a full disk, a closed terminal, or an encoding that lacks a character.
"""

import contextlib
import io
import logging
import os
import sys
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


class _BestEffortFile(io.FileIO):
    """Discards what cannot be written: a closed pipe (`2>&1 | head`), a full disk or a closed terminal."""

    def write(self, data: Any) -> int:
        """Write all of `data`, in several system calls if necessary, and report it as written."""
        whole = memoryview(data)
        done = 0
        with contextlib.suppress(OSError):
            while done < whole.nbytes and (written := super().write(whole[done:])):
                done += written
        return whole.nbytes


def protect_standard_streams() -> None:
    """Discard what cannot be written to standard error, and redirect closed standard streams to os.devnull.

    Characters that the encoding of a stream lacks are escaped: `\\u0107`, or `\\udcff` for a byte that is not UTF-8.

    Streams that replace the process's own, such as those of a test runner, are left unchanged.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:  # otherwise the next file opened would get this descriptor, and receive the output
            os.open(os.devnull, os.O_RDWR)
    if sys.stdout is None:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - stays open as long as the process
    elif sys.stdout is sys.__stdout__ and isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    if sys.stderr is None or sys.stderr is sys.__stderr__:
        encoding = sys.stderr.encoding if sys.stderr is not None else "utf-8"
        file = _BestEffortFile(2, "w", closefd=False)
        # Unbuffered, like `python -u`. An interrupt after a buffered write would make the line appear twice.
        sys.stderr = io.TextIOWrapper(file, encoding, errors="backslashreplace", write_through=True)


def print_report(text: str) -> None:
    """Print the report of a program. Log a warning if standard output cannot be written."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        logger.warning("cannot write to standard output: %s. The report is lost.", error.strerror)
        # Otherwise flushing the rest of the buffer at exit would raise the error again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
