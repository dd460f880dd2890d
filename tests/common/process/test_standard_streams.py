"""Programs whose standard output or standard error cannot be written."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.root import ROOT

PROGRAM = """
import logging, os, sys
from common.process.logging import setup_logging
from common.process.standard_streams import print_report, protect_standard_streams

protect_standard_streams()
setup_logging(0)
logging.getLogger("core").info("first")
sys.stdin.readline()  # the test has closed its end of the pipe by now
for _ in range(5):
    logging.getLogger("core").info("more" * 10_000)
file = os.open(os.devnull, os.O_RDONLY)
print_report("the report\\n" * 10_000)
with open(sys.argv[1], "w") as done:
    done.write(f"{file > 2}")
"""


REPORT = "the report\n" * 10_000


def start(done: Path, redirections: str, stdout: int, stderr: int) -> "subprocess.Popen[str]":
    command = ["sh", "-c", f'exec "$0" "$@" {redirections}', sys.executable, "-c", PROGRAM, str(done)]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=stdout, stderr=stderr, text=True)


@pytest.mark.parametrize(
    ("redirections", "printed"),
    [
        ("2>/dev/full", REPORT),
        ("2>&-", REPORT),
        (">/dev/full", ""),
        (">&-", ""),
        (">/dev/full 2>&1", ""),
        (">&- 2>&-", ""),
    ],
)
def test_an_unwritable_stream_does_not_end_the_program(tmp_path: Path, redirections: str, printed: str) -> None:
    process = start(tmp_path / "done", redirections, subprocess.PIPE, subprocess.PIPE)
    stdout, stderr = process.communicate("\n", timeout=60)
    assert process.returncode == 0
    assert (tmp_path / "done").read_text() == "True"
    assert stdout == printed
    is_reported = "cannot write to standard output: No space left on device. The report is lost." in stderr
    assert is_reported == (redirections == ">/dev/full")


def test_a_reader_that_closes_the_pipe_does_not_end_the_program(tmp_path: Path) -> None:
    read, write = os.pipe()
    process = start(tmp_path / "done", "", write, write)
    os.close(write)
    with os.fdopen(read) as reader:
        assert "INFO first" in reader.readline()
    process.communicate("\n", timeout=60)
    assert process.returncode == 0
    assert (tmp_path / "done").exists()


@pytest.mark.parametrize("encoding", ["ascii", "ascii:strict", "latin-1:strict", "utf-8:strict"])
def test_characters_that_a_stream_lacks_are_escaped(encoding: str) -> None:
    program = """
import logging, sys
from common.process.logging import setup_logging
from common.process.standard_streams import print_report, protect_standard_streams

protect_standard_streams()
setup_logging(0)
for text in ("\\u0107", "\\udcff", "\\U0001f600"):
    print_report(text + "\\n")
    sys.stdout.write(text + "\\n")
    logging.getLogger("core").info("logged %s", text)
    sys.stderr.write(text + "\\n")
"""
    ended = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, "PYTHONIOENCODING": encoding},
        capture_output=True,
        check=True,
        timeout=120,
    )
    wide = encoding.startswith("utf-8")
    shown = ["ć" if wide else "\\u0107", "\\udcff", "😀" if wide else "\\U0001f600"]
    assert ended.stdout.decode() == "".join(f"{text}\n{text}\n" for text in shown)
    lines = ended.stderr.decode().splitlines()
    assert [line.rpartition(" ")[-1] for line in lines] == [text for text in shown for _ in range(2)]
