"""Standard output and error of a program that must not end because nobody takes what it prints."""

import contextlib
import io
import logging
import os
import sys
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


class _ForgivingFile(io.FileIO):
    """Drops what can't be written: a reader that has left (`2>&1 | head`), a full disk, a terminal that was closed."""

    def write(self, data: Any) -> int:
        """All of it, in as many pieces as it takes."""
        whole = memoryview(data)
        done = 0
        with contextlib.suppress(OSError):
            while done < whole.nbytes and (written := super().write(whole[done:])):
                done += written
        return whole.nbytes


def make_forgiving() -> None:
    """Standard error drops from now on what can't be written; a standard stream that was closed goes nowhere.

    Streams that somebody has put in the place of the process's own are left as they are.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:  # else the next file that is opened would get this number, and what is printed
            os.open(os.devnull, os.O_RDWR)
    if sys.stdout is None:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - as long as the process
    if sys.stderr is None or sys.stderr is sys.__stderr__:
        encoding = sys.stderr.encoding if sys.stderr is not None else "utf-8"
        file = _ForgivingFile(2, "w", closefd=False)
        # As `python -u` has it. A buffer would write a line again that an interrupt met after it was written.
        sys.stderr = io.TextIOWrapper(file, encoding, errors="backslashreplace", write_through=True)


def print_report(text: str) -> None:
    """Prints what a program has done. Where standard output can't be written, that is a warning."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        logger.warning("standard output can't be written (%s); the report is lost", error.strerror)
        # What is left in the buffer would be an error again when the process ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
