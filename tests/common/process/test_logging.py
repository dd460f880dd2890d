import re
import subprocess
import sys

from tests.support.root import ROOT

PROGRAM = """
import logging, sys, warnings
from common.process.logging import setup_logging
setup_logging(int(sys.argv[1]))
setup_logging(int(sys.argv[1]))  # twice is once
logger = logging.getLogger("core.anything")
logger.debug("too fine")
logger.info("step %d", 5)
logger.error("an error")
warnings.warn("a warning")
logger.info("wrong %d", "arguments")
raise KeyError("a traceback")
"""


def standard_error(rank: int) -> str:
    ended = subprocess.run([sys.executable, "-c", PROGRAM, str(rank)], cwd=ROOT, capture_output=True, text=True)
    assert ended.stdout == ""
    assert ended.returncode == 1
    return ended.stderr


def test_rank_0_speaks():
    told = standard_error(0)
    assert re.search(r"^\d\d:\d\d:\d\d INFO step 5$", told, re.MULTILINE)
    assert told.count("step 5") == 1
    assert "ERROR an error" in told
    assert "a warning" in told
    assert "too fine" not in told
    assert "KeyError: 'a traceback'" in told


def test_other_ranks_are_silent_but_for_a_traceback():
    told = standard_error(1)
    assert told.startswith("Traceback")
    assert told.endswith("KeyError: 'a traceback'\n")
    assert "an error" not in told
